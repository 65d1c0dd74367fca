"""Signals: how well what a probe can know ranks bands, beside the trivial predictor, width."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence

from scipy import stats

from bandsearch.probe.scores import coherence_by_layer
from bandsearch.search.correlation import spearman, within
from bandsearch.values.profile import SensitivityProfile
from bandsearch.values.value import Value
from benchmarks.bandbench.measured import Measured
from benchmarks.bandbench.table import Table

TOP = 5
WIDTH = "width"


class BandSignal(Value):
    """A signal of bands against how low the band's best full loss is; 1 is perfect agreement. What a signal says of
    layers is summed over the band's.

    `regret`: of the best of its five first bands, above the best band, all and (`narrow_regret`) up to half of the
    depth, since a sum's five first are the widest. In nats per token. `seconds` of one core, None where it comes with
    the probe.
    """

    signal: str
    overall: float | None
    within_width: float | None
    regret: float
    narrow_regret: float
    seconds: float | None = None


class Ranking(Value):
    """The bands of a table at the habit's rank and targets: how wide they are, what they gain on seed 0, and what every
    signal gives them."""

    widths: tuple[int, ...]
    gains: tuple[float, ...]
    scores: dict[str, tuple[float, ...]]


def ranking(table: Table, measured: Measured | None) -> Ranking:
    best: dict[tuple[int, int], float] = {}
    for index, option in enumerate(table.options):
        entry = option.entry
        if option.seeds and entry.is_band and (entry.rank, entry.targets) == table.habit:
            band = entry.bands[0]
            best[band] = min(best.get(band, float("inf")), float(table.read[index, -1]))
    layers: dict[str, Sequence[float]] = {WIDTH: (1.0,) * table.layer_count, **layer_signals(table.profile)}
    scores: dict[str, tuple[float, ...]] = {}
    if measured is not None:
        layers |= measured.layers
    for name, each in layers.items():
        scores[name] = tuple(sum(each[start:stop]) for start, stop in best)
    for name, bands in (measured.bands if measured is not None else {}).items():
        by_band = {(start, stop): score for start, stop, score in bands}
        scores[name] = tuple(by_band[band] for band in best)
    return Ranking(
        widths=tuple(stop - start for start, stop in best), gains=tuple(-loss for loss in best.values()), scores=scores
    )


def band_signals(table: Table, measured: Measured | None = None) -> tuple[BandSignal, ...]:
    """The trivial predictor comes first."""
    ranked = ranking(table, measured)
    narrow = [index for index, width in enumerate(ranked.widths) if 2 * width <= table.layer_count]
    return tuple(
        BandSignal(
            signal=name,
            overall=spearman(scores, ranked.gains),
            within_width=within(scores, ranked.gains, ranked.widths),
            regret=_regret(scores, ranked.gains, range(len(ranked.gains))),
            narrow_regret=_regret(scores, ranked.gains, narrow),
            seconds=measured.seconds.get(name) if measured is not None else None,
        )
        for name, scores in ranked.scores.items()
    )


class HeldOut(Value):
    """What the other tasks would have chosen for a task, and how well that ranks its bands within equal width."""

    task: str
    signal: str
    within_width: float | None
    pair: tuple[str, str]
    pair_within_width: float | None


def held_out(rankings: Mapping[str, Ranking]) -> tuple[HeldOut, ...]:
    """Cross-validation over tasks: the signal, and the pair of signals (their ranks summed), with the highest mean
    correlation within equal width on all other tasks. Needs two tasks."""
    common = set.intersection(*(set(each.scores) for each in rankings.values())) - {WIDTH} if rankings else set()
    names = [name for name in next(iter(rankings.values())).scores if name in common] if rankings else []
    pairs = list(itertools.combinations(names, 2))
    if len(rankings) < 2 or not pairs:
        return ()
    single = {task: {name: _within(each, (name,)) for name in names} for task, each in rankings.items()}
    double = {task: {pair: _within(each, pair) for pair in pairs} for task, each in rankings.items()}
    found = []
    for task in rankings:
        others = [other for other in rankings if other != task]
        name = max(names, key=lambda each: statistics.mean(single[other][each] or 0.0 for other in others))
        pair = max(pairs, key=lambda each: statistics.mean(double[other][each] or 0.0 for other in others))
        found.append(
            HeldOut(
                task=task,
                signal=name,
                within_width=single[task][name],
                pair=pair,
                pair_within_width=double[task][pair],
            )
        )
    return tuple(found)


def _within(ranked: Ranking, names: Sequence[str]) -> float | None:
    ranks = [stats.rankdata(ranked.scores[name]) for name in names]
    return within([float(sum(each)) for each in zip(*ranks, strict=True)], ranked.gains, ranked.widths)


def layer_signals(profile: SensitivityProfile) -> Mapping[str, Sequence[float]]:
    """One number per layer for everything the profile holds; larger should mean: adapt this layer."""
    count = profile.layer_count
    raw = [sum(module.raw for module in profile.modules if module.layer == layer) for layer in range(count)]
    signals: dict[str, Sequence[float]] = {
        "probe's score": profile.layer_scores,
        "gradient, raw": raw,
        "gradient, normalised": coherence_by_layer(profile.modules, count),
    }
    views = sorted(profile.views, key=lambda view: view.layer)
    if len(views) == count:
        signals |= {
            "1 − CKA": [1 - view.cka for view in views],
            "CKA (stability)": [view.cka for view in views],
            "1 − cosine": [1 - view.cosine for view in views],
            "‖ΔW‖/‖W‖": [view.relative_change for view in views],
            "entropy, change": [abs(view.entropy_tuned - view.entropy_base) for view in views],
            "effective rank, change": [abs(view.effective_rank_tuned - view.effective_rank_base) for view in views],
            "curvature, change": [abs(view.curvature_tuned - view.curvature_base) for view in views],
        }
    return {name: values for name, values in signals.items() if any(values)}


def _regret(scores: Sequence[float], gains: Sequence[float], among: Sequence[int]) -> float:
    first = sorted(among, key=lambda index: -scores[index])[:TOP]
    return max(gains[index] for index in among) - max(gains[index] for index in first) if first else 0.0
