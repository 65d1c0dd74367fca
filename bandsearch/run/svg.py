"""Inline SVG: escaped elements, scales with round ticks, axes. Colours are classes of the page's CSS."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape


def element(name: str, *content: object, **attributes: object) -> Markup:
    """`<name ...>content</name>`. Attribute names take - for _; a trailing _ is dropped (class_). Text is escaped."""
    rendered = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_plain(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup("<{0}{1}>{2}</{0}>").format(name, Markup(rendered), Markup("").join(escape(part) for part in content))


def _plain(value: object) -> object:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value


def title(text: str) -> Markup:
    """What a browser shows while the pointer rests on the enclosing element."""
    return element("title", text)


def picture(width: int, height: int, parts: Iterable[Markup], label: str) -> Markup:
    """A drawing that scales with its container; `label` is what a screen reader says."""
    return element(
        "svg",
        *parts,
        viewBox=f"0 0 {width} {height}",
        role="img",
        aria_label=label,
        style=f"max-width:{round(width * 1.25)}px",
    )


def polyline(points: Sequence[tuple[float, float]], class_: str) -> Markup:
    return element("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points), class_=class_)


@dataclass(frozen=True)
class Scale:
    """Maps [low, high] in the unit of the data to [start, stop] in drawing units, linearly or by logarithm."""

    low: float
    high: float
    start: float
    stop: float
    logarithmic: bool = False

    @classmethod
    def over(
        cls, values: Iterable[float], start: float, stop: float, *, logarithmic: bool = False, zero: bool = False
    ) -> Scale:
        """A scale that holds all finite `values` with a little air; from zero where bars begin at it."""
        finite = [value for value in values if math.isfinite(value) and (value > 0 or not logarithmic)] or [1.0]
        low, high = min(finite), max(finite)
        if logarithmic:
            air = max((high / low) ** 0.06, 1.05)
            return cls(low / air, high * air, start, stop, True)
        air = (high - low) * 0.06 or abs(high) * 0.1
        air = air if air > 1e-100 else 1.0
        return cls(min(0.0, low) if zero else low - air, high + air, start, stop)

    def __call__(self, value: float) -> float:
        if self.logarithmic:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + min(1.0, max(0.0, share)) * (self.stop - self.start)

    def ticks(self, wanted: int = 5) -> list[float]:
        """Round numbers inside the scale: 1, 2, 5 times a power of ten."""
        if self.logarithmic:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for steps in ((1, 2, 5), (1, 3), (1,)):
                found = [m * 10.0**d for d in decades for m in steps if self.low <= m * 10.0**d <= self.high]
                if len(found) <= wanted + 1:
                    return found
            return found[:: math.ceil(len(found) / wanted)]
        rough = (self.high - self.low) / max(1, wanted)
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough)
        first = math.ceil(self.low / step - 1e-9)
        return [n * step for n in range(first, math.floor(self.high / step + 1e-9) + 1)]


def rules(x: Scale, y: Scale, count: int) -> list[Markup]:
    """About so many light horizontal lines, each with its value."""
    parts = []
    for tick in y.ticks(count):
        parts.append(element("line", x1=x.start, x2=x.stop, y1=y(tick), y2=y(tick), class_="rule"))
        parts.append(element("text", number(tick), x=x.start - 6, y=y(tick) + 4, class_="tick end"))
    return parts


def axes(x: Scale, y: Scale, x_name: str, y_name: str, *, x_whole: bool = False) -> list[Markup]:
    """Light horizontal rules, tick labels and the names of both axes."""
    parts = rules(x, y, 4)
    for tick in x.ticks(6):
        if not x_whole or tick == int(tick):
            parts.append(element("text", number(tick), x=x(tick), y=y.start + 16, class_="tick middle"))
    parts.append(element("line", x1=x.start, x2=x.stop, y1=y.start, y2=y.start, class_="axis"))
    parts.append(element("text", x_name, x=(x.start + x.stop) / 2, y=y.start + 33, class_="name middle"))
    parts.append(element("text", y_name, x=x.start - 6, y=y.stop - 9, class_="name"))
    return parts


def number(value: float) -> str:
    """A short form for axes: 0.05, 1.2, 40, 12k, 3M, 1e-4."""
    if value == 0:
        return "0"
    size = abs(value)
    for limit, suffix in ((1e9, "B"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            return f"{value / (1e3 if suffix == 'k' else limit):.4g}{suffix}"
    if size < 1e-3:
        mantissa, exponent = f"{value:.0e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:.4g}"
