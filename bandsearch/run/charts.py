"""The report's charts as inline SVG. Each is a function from values to a drawing; hovering shows the numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from markupsafe import Markup

from bandsearch.run.svg import Scale, axes, element, number, picture, polyline, rules, title
from bandsearch.run.words import layers_of
from bandsearch.values.band import Band
from bandsearch.values.candidate import Candidate, Role
from bandsearch.values.evaluation import Arm, Finalist, Interval
from bandsearch.values.pareto import pareto_front
from bandsearch.values.profile import LayerViews, RateRange, SensitivityProfile
from bandsearch.values.trial import TrialResult, TrialState

WIDTH = 480
HEAT_STEPS = 7
ARM_CLASSES = {Arm.WINNER: "winner", Arm.FULL_DEPTH: "baseline"}
LETTERS = {Role.FULL_DEPTH: "F", Role.MID_BLOCK: "M", Role.LAST_K: "L", Role.RANDOM_BAND: "R"}
FAILED = (TrialState.DIVERGED, TrialState.OUT_OF_MEMORY)


def layer_strip(candidate: Candidate, layer_count: int) -> Markup:
    """One small box per layer, filled where the adapter sits."""
    width, gap = 240, 2 if layer_count <= 40 else 1
    size = (width + gap) / layer_count - gap
    adapted = set(candidate.layers)
    boxes = [
        element(
            "rect",
            title(f"layer {layer}{': adapted' if layer in adapted else ''}"),
            x=layer * (size + gap),
            y=0,
            width=size,
            height=16,
            rx=min(3.0, size / 4),
            class_="winner" if layer in adapted else "track",
        )
        for layer in range(layer_count)
    ]
    return picture(width, 16, boxes, f"adapted layers: {', '.join(map(str, candidate.layers))}")


def layer_sensitivity(profile: SensitivityProfile, bands: Sequence[Band]) -> Markup:
    """The probe's score of every layer; layers of the winner's bands are marked."""
    height = 318
    x = Scale(-0.5, profile.layer_count - 0.5, 46, WIDTH - 8)
    y = Scale.over(profile.layer_scores, height - 42, 26, zero=True)
    size = (x.stop - x.start) / profile.layer_count
    inside = {layer for band in bands for layer in band.layers}
    rank = {layer: place for place, layer in enumerate(profile.ranking, start=1)}
    bars = [
        element(
            "rect",
            title(f"layer {layer}: {score:.4f} of the whole, rank {rank[layer]} of {profile.layer_count}"),
            x=x(layer) - size * 0.38,
            y=y(score),
            width=size * 0.76,
            height=y.start - y(score),
            rx=min(2.0, size * 0.15),
            class_="winner" if layer in inside else "quiet",
        )
        for layer, score in enumerate(profile.layer_scores)
    ]
    parts = [*_shade(x, bands, 20, y.start), *axes(x, y, "layer", "share of sensitivity", x_whole=True), *bars]
    return picture(WIDTH, height, parts, "sensitivity of every layer")


def layer_views(views: Sequence[LayerViews], layer_count: int, bands: Sequence[Band]) -> Markup:
    """Three rows over the same layers: geometry (CKA), optimisation (relative change), information (entropy)."""
    rows: tuple[tuple[str, tuple[tuple[str, str, Callable[[LayerViews], float]], ...]], ...] = (
        ("CKA, base against tuned", (("line-a", "CKA", lambda view: view.cka),)),
        ("‖ΔW‖ / ‖W‖", (("line-a", "relative change", lambda view: view.relative_change),)),
        (
            "matrix entropy: base - -, tuned —",
            (("line-b", "base", lambda view: view.entropy_base), ("line-a", "tuned", lambda view: view.entropy_tuned)),
        ),
    )
    row_height, top = 92, 22
    x = Scale(-0.5, layer_count - 0.5, 46, WIDTH - 8)
    bottom = top + row_height * len(rows) - 22
    parts: list[Markup] = _shade(x, bands, top - 12, bottom)
    for index, (name, lines) in enumerate(rows):
        low = top + row_height * index + row_height - 22
        values = [read(view) for _, _, read in lines for view in views]
        y = Scale.over(values, low, low - row_height + 40)
        parts.append(element("text", name, x=x.start - 6, y=y.stop - 8, class_="name"))
        parts += rules(x, y, 3)
        for class_, label, read in lines:
            parts.append(polyline([(x(view.layer), y(read(view))) for view in views], f"line {class_}"))
            parts += [
                element(
                    "circle",
                    title(f"layer {view.layer}, {label}: {read(view):.4g}"),
                    cx=x(view.layer),
                    cy=y(read(view)),
                    r=2.6,
                    class_=f"dot {class_}",
                )
                for view in views
            ]
    ticks = [tick for tick in x.ticks(6) if tick == int(tick)]
    parts += [element("text", number(tick), x=x(tick), y=bottom + 16, class_="tick middle") for tick in ticks]
    parts.append(element("text", "layer", x=(x.start + x.stop) / 2, y=bottom + 33, class_="name middle"))
    return picture(WIDTH, bottom + 42, parts, "three views of every layer: CKA, relative change, entropy")


def _shade(x: Scale, bands: Sequence[Band], top: float, bottom: float) -> list[Markup]:
    return [
        element(
            "rect",
            x=x(band.start - 0.5),
            y=top,
            width=x(band.stop - 0.5) - x(band.start - 0.5),
            height=bottom - top,
            class_="shade",
        )
        for band in bands
    ]


def band_map(
    losses: Mapping[Band, float], counts: Mapping[Band, int], marks: Mapping[Band, str], layer_count: int
) -> Markup:
    """Start across, last layer upwards; the colour is the best loss of any candidate on that band.

    `marks` are one-letter labels of bands that were tried as baselines or won ("W").
    """
    width, left, bottom_space, top = 340, 40, 40, 22
    size = (width - left - 8) / layer_count
    floor = top + size * layer_count
    best = min(losses.values())
    # A few bands that learnt nothing would otherwise take all the colours.
    worst = sorted(losses.values())[min(len(losses) - 1, round(0.9 * len(losses)))]
    pad = 1.0 if layer_count <= 20 else 0.5
    parts: list[Markup] = []
    ringed: list[Markup] = []
    for start in range(layer_count):
        for stop in range(start + 1, layer_count + 1):
            band = Band(start=start, stop=stop)
            place = {
                "x": left + start * size + pad / 2,
                "y": floor - stop * size + pad / 2,
                "width": size - pad,
                "height": size - pad,
                "rx": min(3.0, size / 6),
            }
            words = f"{layers_of((band,))}: not tried here"
            class_ = "untried"
            if band in losses:
                share = min(1.0, (losses[band] - best) / ((worst - best) or 1.0))
                class_ = f"heat{HEAT_STEPS - 1 - min(HEAT_STEPS - 1, int(share * HEAT_STEPS))}"
                words = f"{layers_of((band,))}: loss {losses[band]:.4f}, {counts[band]} candidate(s)"
            mark = marks.get(band)
            note = title(words) if mark or band in losses else ""
            parts.append(element("rect", note, class_=class_, **place))
            if mark:
                # Where the cell is too small to hold its letter, the letter stands to its right.
                aside = 0.0 if size >= 16 else size / 2 + 7
                x, y = place["x"] + place["width"] / 2 + aside, place["y"] + place["height"] / 2 + 4.5
                ringed.append(element("rect", note, class_="ring win" if mark == "W" else "ring", **place))
                ringed.append(element("text", mark, x=x, y=y, class_="mark"))
    ticks = [tick for tick in Scale(0, layer_count - 1, 0, 1).ticks(5) if tick == int(tick)]
    for tick in ticks:
        centre = (tick + 0.5) * size
        parts.append(element("text", number(tick), x=left + centre, y=floor + 15, class_="tick middle"))
        parts.append(element("text", number(tick), x=left - 6, y=floor - centre + 4, class_="tick end"))
    parts.append(element("text", "first layer", x=(left + width) / 2, y=floor + 32, class_="name middle"))
    parts.append(element("text", "last layer", x=left - 30, y=top - 8, class_="name"))
    parts += _legend(width - 112, floor - 34, best, worst)
    return picture(
        width, round(floor) + bottom_space, parts + ringed, "loss of every band tried, by first and last layer"
    )


def _legend(x: float, y: float, best: float, worst: float) -> list[Markup]:
    boxes = [
        element("rect", x=x + 14 * step, y=y, width=14, height=10, class_=f"heat{HEAT_STEPS - 1 - step}")
        for step in range(HEAT_STEPS)
    ]
    return [
        *boxes,
        element("text", "loss", x=x, y=y - 6, class_="tick"),
        element("text", f"{best:.3f}", x=x, y=y + 23, class_="tick"),
        element("text", f"≥ {worst:.3f}", x=x + 14 * HEAT_STEPS, y=y + 23, class_="tick end"),
    ]


def pareto(points: Sequence[tuple[int, float, str, str]]) -> Markup:
    """(parameters, loss, class, words) each; the front is the line below which nothing was found."""
    height = 270
    x = Scale.over([point[0] for point in points], 54, WIDTH - 10, logarithmic=True)
    y = Scale.over([point[1] for point in points], height - 42, 26)
    front = pareto_front(points, lambda point: (float(point[0]), point[1]))
    steps: list[tuple[float, float]] = []
    for parameters, loss, _, _ in front:
        if steps:
            steps.append((x(parameters), steps[-1][1]))
        steps.append((x(parameters), y(loss)))
    steps.append((x.stop, steps[-1][1]))
    parts = [*axes(x, y, "trainable parameters", "validation loss"), polyline(steps, "line front")]
    ordered = sorted(points, key=lambda point: point[2] != "search")
    parts += [
        element("circle", title(words), cx=x(parameters), cy=y(loss), r=4.5, class_=f"point {class_}")
        for parameters, loss, class_, words in ordered
    ]
    return picture(WIDTH, height, parts, "loss against trainable parameters")


def history(trials: Sequence[TrialResult], winner: Candidate) -> Markup:
    """Every candidate in the order it was proposed, at its last loss, and the best so far."""
    height = 270
    losses = sorted(trial.last_loss for trial in trials if trial.last_loss is not None)
    roof = losses[min(len(losses) - 1, round(0.95 * len(losses)))]
    x = Scale(-1, max(trial.number for trial in trials) + 1, 46, WIDTH - 10)
    y = Scale.over([losses[0], roof], height - 42, 26)
    parts = axes(x, y, "candidate, in the order proposed", "last validation loss", x_whole=True)
    best: list[tuple[float, float]] = []
    dots = []
    for trial in sorted(trials, key=lambda trial: trial.number):
        loss = trial.last_loss
        failed = trial.state in FAILED
        if loss is not None and not failed and (not best or y(loss) > best[-1][1]):
            best += [(x(trial.number), best[-1][1])] if best else []
            best.append((x(trial.number), y(loss)))
        words = f"#{trial.number} {trial.candidate}: {trial.state.replace('_', ' ')} after {trial.steps} steps"
        words += "" if loss is None else f", loss {loss:.4f}"
        place = (x(trial.number), y.stop if failed or loss is None else y(loss))
        class_ = class_of(trial.candidate, trial.role, winner)
        if failed or loss is None:
            shape = f"M{place[0] - 4:.1f} {place[1] - 4:.1f}l8 8m0 -8l-8 8"
            dots.append(element("path", title(words), d=shape, class_="failed"))
        elif trial.state is TrialState.PRUNED:
            dots.append(element("circle", title(words), cx=place[0], cy=place[1], r=3.2, class_=f"hollow {class_}"))
        else:
            dots.append(element("circle", title(words), cx=place[0], cy=place[1], r=4.0, class_=f"point {class_}"))
    if best:
        best.append((x.stop, best[-1][1]))
        parts.append(polyline(best, "line front"))
    return picture(WIDTH, height, parts + dots, "search history")


def budget_bars(rows: Sequence[tuple[str, float | None, float]], words: Callable[[float], str]) -> Markup:
    """(stage, planned, spent) in device-seconds, written by `words`: a bar for spent, a tick for planned."""
    left, right, step, top = 74, 150, 26, 8
    most = max((max(spent, planned or 0.0) for _, planned, spent in rows), default=0.0)
    x = Scale(0.0, most or 1.0, left, WIDTH - right)
    parts = []
    for index, (stage, planned, spent) in enumerate(rows):
        y = top + index * step
        said = words(spent) if planned is None else f"{words(spent)} of {words(planned)}"
        note = title(f"{stage}: {said}" + (" planned" if planned is not None else ""))
        parts.append(element("text", stage, x=left - 8, y=y + 13, class_="tick end strong"))
        parts.append(element("rect", note, x=left, y=y, width=x(spent) - left, height=17, rx=2, class_="baseline"))
        if planned is not None:
            parts.append(element("line", note, x1=x(planned), x2=x(planned), y1=y - 3, y2=y + 20, class_="plan"))
        after = x(max(spent, planned or 0.0)) + 8
        parts.append(element("text", said, x=after, y=y + 13, class_="tick"))
    return picture(WIDTH, top + step * len(rows) + 4, parts, "budget by stage, planned and spent")


def interval_bar(interval: Interval, lower_is_better: bool) -> Markup:
    """A difference with its interval on a line through zero."""
    width, middle = 150, 9
    reach = 1.15 * max(abs(interval.low), abs(interval.high), abs(interval.mean)) or 1.0
    x = Scale(-reach, reach, 2, width - 2)
    good = interval.high < 0 if lower_is_better else interval.low > 0
    class_ = ("good" if good else "bad") if interval.excludes_zero else "open"
    return picture(
        width,
        18,
        [
            element("line", x1=x(0), x2=x(0), y1=0, y2=18, class_="axis"),
            element("line", x1=x(interval.low), x2=x(interval.high), y1=middle, y2=middle, class_=f"whisker {class_}"),
            element("circle", cx=x(interval.mean), cy=middle, r=4, class_=class_),
        ],
        f"{interval.mean:.4g}, interval {interval.low:.4g} to {interval.high:.4g}",
    )


def finalist_dots(finalist: Finalist, low: float, high: float, class_: str) -> Markup:
    """The loss of every seed as a dot and their mean as a tick, on a scale shared by all finalists."""
    width, middle = 190, 9
    x = Scale(low, high, 6, width - 6)
    dots = [
        element("circle", title(f"seed {seed}: {loss:.4f}"), cx=x(loss), cy=middle, r=3.6, class_=f"seed {class_}")
        for seed, loss in enumerate(finalist.losses)
    ]
    mean = element("line", x1=x(finalist.loss), x2=x(finalist.loss), y1=1, y2=17, class_=f"mean {class_}")
    track = element("line", x1=4, x2=width - 4, y1=middle, y2=middle, class_="rule")
    return picture(width, 18, [track, *dots, mean], ", ".join(f"{loss:.4f}" for loss in finalist.losses))


def rate_range(rates: RateRange, used: Iterable[tuple[float, str]]) -> Markup:
    """The range test: training loss reached at every rate, the span searched, and the rates that were chosen."""
    height = 270
    reached = [(point.learning_rate, point.loss) for point in rates.points if point.loss is not None]
    x = Scale.over(
        [rates.low, rates.high, *(point.learning_rate for point in rates.points)], 46, WIDTH - 10, logarithmic=True
    )
    y = Scale.over([loss for _, loss in reached], height - 42, 26)
    parts = [
        element(
            "rect",
            x=x(rates.low),
            y=y.stop - 6,
            width=x(rates.high) - x(rates.low),
            height=y.start - y.stop + 6,
            class_="shade cool",
        ),
        *axes(x, y, "learning rate", "training loss reached"),
        polyline([(x(rate), y(loss)) for rate, loss in reached], "line line-a"),
    ]
    for point in rates.points:
        if point.loss is None:
            shape = f"M{x(point.learning_rate) - 4:.1f} {y.stop - 4:.1f}l8 8m0 -8l-8 8"
            parts.append(element("path", title(f"rate {point.learning_rate:.2g}: diverged"), d=shape, class_="failed"))
        else:
            words = title(f"rate {point.learning_rate:.2g}: loss {point.loss:.4f}")
            place = (x(point.learning_rate), y(point.loss))
            parts.append(element("circle", words, cx=place[0], cy=place[1], r=3, class_="dot line-a"))
    for rate, class_ in used:
        words = title(f"{class_}: {rate:.2g}")
        parts.append(element("line", words, x1=x(rate), x2=x(rate), y1=y.stop - 6, y2=y.start, class_=f"mean {class_}"))
    return picture(WIDTH, height, parts, "learning-rate range test")


def class_of(candidate: Candidate, role: Role, winner: Candidate) -> str:
    """The colour a candidate has in every chart and table."""
    if candidate == winner:
        return "winner"
    if role is Role.FULL_DEPTH:
        return "baseline"
    return "other" if role.is_baseline else "search"
