"""How far short trainings predicted long ones: a search is trusted only as far as this was measured."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from scipy import stats

from bandsearch.search.strata import width_class
from bandsearch.values.trial import TrialResult, TrialState
from bandsearch.values.value import Value

SMALLEST_SAMPLE = 3


class RungCorrelation(Value):
    """Spearman's rank correlation of losses at a rung with mean losses after confirmation; None: too few to say.

    `across` compares all `pairs` candidates, `within` only those of equal width class (the mean over classes of at
    least three, weighted by their size), `width` is what the trivial predictor "more layers, lower loss" reaches.
    """

    steps: int
    pairs: int
    across: float | None
    within: float | None
    width: float | None


def proxy_correlation(results: Sequence[TrialResult], layer_count: int) -> tuple[RungCorrelation, ...]:
    """From the results of both stages, one entry per rung at which two or more confirmed candidates were read."""
    confirmed: dict[str, list[float]] = {}
    for result in results:
        if result.stage == "confirm" and result.state is TrialState.COMPLETE:
            confirmed.setdefault(result.candidate.identity, []).append(result.points[-1].loss)
    searched = {
        result.candidate.identity: result
        for result in results
        if result.stage == "search" and result.candidate.identity in confirmed
    }
    entries = []
    for steps in sorted({point.steps for result in searched.values() for point in result.points}):
        pairs: list[tuple[float, float]] = []
        layers: list[float] = []
        by_class: dict[str, list[tuple[float, float]]] = {}
        for identity, result in searched.items():
            loss = result.loss_at(steps)
            if loss is not None:
                pair = (loss, statistics.mean(confirmed[identity]))
                pairs.append(pair)
                layers.append(-float(len(result.candidate.layers)))
                by_class.setdefault(width_class(result.candidate, layer_count), []).append(pair)
        if len(pairs) < 2:
            continue
        classes = [(len(group), rho) for group in by_class.values() if (rho := _spearman(group)) is not None]
        entries.append(
            RungCorrelation(
                steps=steps,
                pairs=len(pairs),
                across=_spearman(pairs),
                within=sum(size * rho for size, rho in classes) / sum(size for size, _ in classes) if classes else None,
                width=_spearman([(count, late) for count, (_, late) in zip(layers, pairs, strict=True)]),
            )
        )
    return tuple(entries)


def _spearman(pairs: Sequence[tuple[float, float]]) -> float | None:
    """None for fewer than three pairs, or where one side does not vary."""
    early, late = zip(*pairs, strict=True)
    if len(pairs) < SMALLEST_SAMPLE or len(set(early)) == 1 or len(set(late)) == 1:
        return None
    return float(stats.spearmanr(early, late).statistic)
