"""Estimates: from trainings to where they end without noise, what a seed does to all of them, and what is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bandsearch.search.strata import WidthClass, class_of
from benchmarks.bandbench.entry import Entry
from benchmarks.bandbench.residuals import Array, Residuals
from benchmarks.bandbench.rows import Row

# An entry at a rate, and what was trained of it from the first rung to full length: seed -> a loss per column.
Arm = tuple[Entry, float]
Losses = dict[Arm, dict[int, Array]]


def effects_of(whole: Losses, layer_count: int) -> tuple[dict[int, Array], Losses]:
    """What a seed does to all entries; and the losses without it, those left out that made their entry a survivor.

    A survivor was chosen for what it did at seed 0, so it is judged by its other seeds, and seed 0 by entries that have
    all seeds whatever they did: by their median, since a training that breaks off does so alone.
    """
    seeds = sorted({seed for by_seed in whole.values() for seed in by_seed})
    unchosen = {arm for arm in whole if arm[0].is_drawn or len(arm[0].layers) == layer_count}
    judges = [arm for arm, by_seed in whole.items() if arm in unchosen and len(by_seed) == len(seeds) > 1]
    columns = len(next(iter(next(iter(whole.values())).values())))
    effects = {seed: np.zeros(columns) for seed in seeds}
    if judges:
        curves = np.array([[whole[arm][seed] for seed in seeds] for arm in judges])
        centred = np.median(curves - curves.mean(axis=1, keepdims=True), axis=0)
        effects = dict(zip(seeds, centred - centred.mean(axis=0), strict=True))
    fair: Losses = {}
    for arm, by_seed in whole.items():
        biased = len(by_seed) > 1 and arm not in unchosen
        fair[arm] = {seed: losses - effects[seed] for seed, losses in by_seed.items() if seed or not biased}
    return effects, fair


def residuals_of(fair: Losses, columns: int) -> Residuals:
    trainings: dict[float, list[Array]] = {}
    for (_, rate), by_seed in fair.items():
        if len(by_seed) > 1:
            trainings.setdefault(rate, []).append(np.array(list(by_seed.values())))
    return Residuals.of(trainings, columns)


def shrunk_centres(fair: Losses, residuals: Residuals, layer_count: int) -> dict[Arm, Array]:
    """Centres over seeds, each drawn towards those of its kind by the share of their spread that is noise.

    Of many entries that are equal the best looks better than it is; unshrunk, that would be an optimum to miss.
    """
    centres = {arm: residuals.centre(np.array(list(by_seed.values()))) for arm, by_seed in fair.items()}
    alike: dict[tuple[WidthClass, float, int], list[Arm]] = {}
    for entry, rate in centres:
        kind = class_of(len(entry.layers), layer_count), rate, len(entry.bands)
        alike.setdefault(kind, []).append((entry, rate))
    shrunk: dict[Arm, Array] = {}
    for arms in alike.values():
        losses = np.array([centres[arm] for arm in arms])
        variances = np.array([_variance(residuals, arm, centres[arm]) / len(fair[arm]) for arm in arms])
        between = np.maximum(0.0, losses.var(axis=0) - variances.mean(axis=0))
        kept = between / np.maximum(between + variances, 1e-12)
        drawn = losses.mean(axis=0) + kept * (losses - losses.mean(axis=0))
        shrunk |= dict(zip(arms, drawn, strict=True))
    return shrunk


def _variance(residuals: Residuals, arm: Arm, centre: Array) -> Array:
    """Of what a seed does to a training that does not break off, by the median deviation (normal)."""
    alike = residuals.outcomes(arm[1], centre)
    return (1.4826 * np.median(np.abs(alike - centre), axis=0)) ** 2 if len(alike) else np.zeros_like(centre)


def filled_in(row: Row, best_row: Row, best: Array, gap: Array | None, effect: Array) -> Array:
    """Of a rate that was not trained in full: what was read at the first rung, and from there on the distance to the
    entry's best rate, or none where it was ahead: `gap`, or else what it was at the first rung."""
    if gap is None:
        gap = np.full_like(best, row.readings[0][1] - best_row.readings[0][1])
    centre = best + np.maximum(0.0, gap)
    centre[0] = row.readings[0][1] - effect[0]
    return centre


def gap_of(shrunk: Mapping[Arm, Array], siblings: Sequence[Entry], rate: float, best: float) -> Array | None:
    """What the rate loses to another on the same layers at other ranks and targets, where both were trained in full."""
    gaps = [shrunk[e, rate] - shrunk[e, best] for e in siblings if (e, rate) in shrunk and (e, best) in shrunk]
    return np.asarray(np.mean(gaps, axis=0)) if gaps else None
