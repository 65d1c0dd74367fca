"""Numbers and names in words, the same in both twins of the report."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePath

from bandsearch.values.band import Band
from bandsearch.values.budget import Unit
from bandsearch.values.candidate import Role
from bandsearch.values.evaluation import Arm, Choice, Interval, Metric, Winner
from bandsearch.values.signal import Agreement, Signal

ARM_NAMES = {
    Arm.BASE: "base model",
    Arm.FULL_DEPTH: "full-depth LoRA",
    Arm.WINNER: "winner",
    Arm.ADAPTER: "adapter",
}
ROLE_NAMES = {
    Role.SEARCHED: "searched",
    Role.FULL_DEPTH: "full depth",
    Role.MID_BLOCK: "20–80 % mid-block",
    Role.LAST_K: "last layers",
    Role.RANDOM_BAND: "random band",
}
METRIC_NAMES = {
    Metric.LOSS: "test loss",
    Metric.EXACT_MATCH: "exact match",
    Metric.RETENTION_LOSS: "retention loss",
    Metric.DIVERGENCE: "divergence",
}
CHOICE_WORDS = {
    Choice.BEATS_BASELINE: "beat the tuned baseline on validation",
    Choice.SMALLEST_WITHIN_NOISE: "smallest adapter within noise of the best on validation",
    Choice.CLOSEST_WITHIN_NOISE: "closest to the base of those within noise of the best on validation",
    Choice.BASELINE: "nothing smaller held its own against the tuned baseline on validation",
    Choice.UNCOMPARED: "there was nothing to compare the baseline with",
}


def short_name(name: str) -> str:
    """A hub id or a demo task as it is; of a path its last part."""
    return PurePath(name).name if name.startswith((".", "/", "~")) else name


def layers_of(bands: Sequence[Band]) -> str:
    """ "layer 3", "layers 4–7", "layers 1–2 and 6–7": both ends included, counted from 0."""
    spans = [f"{band.start}" if band.width == 1 else f"{band.start}–{band.stop - 1}" for band in bands]
    plural = "" if len(bands) == 1 and bands[0].width == 1 else "s"
    return f"layer{plural} {' and '.join(spans)}"


def place_of(winner: Winner) -> str:
    """Its layers, or what sets it apart from the baseline where it sits on all of them too."""
    ours, theirs = winner.candidate, winner.baseline
    if ours.layers != theirs.layers:
        return layers_of(ours.bands)
    targets = "" if ours.targets == theirs.targets else f" on {'+'.join(ours.targets)}"
    return f"all layers at rank {ours.rank}{targets}"


def percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def correlation(agreement: Agreement | None) -> str:
    if agreement is None:
        return "–"
    value = f"{agreement.correlation:.2f}".replace("-", "−")
    return f"{value} (n = {agreement.pairs}, chance ±{agreement.chance:.2f})"


def agreed(signal: Signal) -> str:
    """For the log."""
    within = "" if signal.within is None else f", within width classes {correlation(signal.within)}"
    return f"{signal.predictor} against {signal.outcome}: rank correlation {correlation(signal.across)}{within}"


def charged(seconds: float, unit: Unit) -> str:
    """Device-seconds in words: 48 s, 4 min 56 s, 2 h 03 min; of cores or GPUs where the budget counts those."""
    whole = round(seconds)
    prefix = "" if unit is Unit.WALL else f"{unit}-"
    if whole < 60:
        return f"{seconds:.1f} {prefix}s" if seconds < 10 else f"{whole} {prefix}s"
    if whole < 3600:
        return f"{whole // 60} {prefix}min {whole % 60:02} s"
    return f"{whole // 3600} {prefix}h {whole // 60 % 60:02} min {whole % 60:02} s"


def signed(value: float, metric: Metric) -> str:
    text = f"{100 * value:+.1f} pts" if metric is Metric.EXACT_MATCH else f"{value:+.4f}"
    return text.replace("-", "−")


def span(interval: Interval, metric: Metric) -> str:
    return f"{signed(interval.low, metric)} to {signed(interval.high, metric)}"


def markdown_text(text: object) -> str:
    """`text` as it is, in Markdown: nothing in it is markup, HTML or a new table cell."""
    flat = " ".join(str(text).split())
    escaped = flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#~!])", r"\\\1", escaped)
