"""Rank correlations: how far the cheap signals agreed with the dear ones, over what a run measured anyway."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from scipy import stats

from bandsearch.search.strata import width_class
from bandsearch.values.candidate import Candidate
from bandsearch.values.evaluation import Finalist
from bandsearch.values.profile import SensitivityProfile
from bandsearch.values.signal import Agreement, Signal
from bandsearch.values.trial import TrialResult, TrialStage

# Pairs that a correlation takes, and candidates at a rung that the probe is judged by.
LEAST_PAIRS, LEAST_READINGS = 3, 5
# Of a normal distribution 95 % are within so many standard deviations.
NORMAL_95 = 1.96


def signals(
    results: Sequence[TrialResult], finalists: Sequence[Finalist], profile: SensitivityProfile, rungs: Sequence[int]
) -> tuple[Signal, ...]:
    """Every rung against confirmation; the probe, and width alone, against the longest rung many candidates reached.

    `results` are those of the search, `finalists` what the confirmation came to: their losses are adjusted for the
    seeds that each was trained on. What there are too few candidates for is left out.
    """
    search = [result for result in results if result.stage is TrialStage.SEARCH]
    confirmed = {finalist.candidate: finalist.loss for finalist in finalists}
    count = profile.layer_count
    found = []
    for rung in rungs:
        read = [(candidate, loss) for candidate, loss in _readings(search, rung) if candidate in confirmed]
        late = [confirmed[candidate] for candidate, _ in read]
        found += _signal(f"loss after {rung} steps", "confirmed loss", read, late, count)
    measured = [(rung, read) for rung in rungs if len(read := _readings(search, rung)) >= LEAST_READINGS]
    for rung, read in measured[-1:]:
        outcome, losses = f"loss after {rung} steps", [loss for _, loss in read]
        scores = [(each, -sum(profile.layer_scores[layer] for layer in each.layers)) for each, _ in read]
        widths = [(each, -float(len(each.layers))) for each, _ in read]
        found += _signal("probe: sensitivity of the band", outcome, scores, losses, count)
        width = _signal("width of the band alone", outcome, widths, losses, count)
        found += [each.model_copy(update={"within": None}) for each in width]
    return tuple(found)


def spearman(one: Sequence[float], other: Sequence[float]) -> float | None:
    """None for fewer than three pairs, or where one side does not vary."""
    if len(one) < LEAST_PAIRS or len(set(one)) < 2 or len(set(other)) < 2:
        return None
    return float(stats.spearmanr(one, other).statistic)


def within(one: Sequence[float], other: Sequence[float], groups: Sequence[object]) -> float | None:
    """The mean of the groups' correlations, weighted by their size."""
    found = list(_by_group(one, other, groups))
    return sum(size * rho for size, rho in found) / sum(size for size, _ in found) if found else None


def _by_group(one: Sequence[float], other: Sequence[float], groups: Sequence[object]) -> Iterator[tuple[int, float]]:
    """Size and correlation of every group that has one."""
    for group in dict.fromkeys(groups):
        members = [index for index, each in enumerate(groups) if each == group]
        rho = spearman([one[index] for index in members], [other[index] for index in members])
        if rho is not None:
            yield len(members), rho


def _signal(
    name: str, outcome: str, read: Sequence[tuple[Candidate, float]], losses: Sequence[float], layer_count: int
) -> list[Signal]:
    """Of `read`, values of a predictor by candidate; nothing where all of them together are too few."""
    values = [value for _, value in read]
    across = _agreement(values, losses, [None] * len(read))
    if across is None:
        return []
    classes = [width_class(candidate, layer_count) for candidate, _ in read]
    return [Signal(predictor=name, outcome=outcome, across=across, within=_agreement(values, losses, classes))]


def _agreement(one: Sequence[float], other: Sequence[float], groups: Sequence[object]) -> Agreement | None:
    """As `within`, with what it is worth; None where chance gives perfect agreement, as it does below five pairs.

    The correlation of n pairs that have nothing to do with each other has mean 0 and variance 1/(n - 1).
    """
    found, correlation = list(_by_group(one, other, groups)), within(one, other, groups)
    if correlation is None:
        return None
    pairs = sum(size for size, _ in found)
    chance = NORMAL_95 * math.sqrt(sum(size**2 / (size - 1) for size, _ in found)) / pairs
    return Agreement(correlation=correlation, pairs=pairs, chance=chance) if chance < 1 else None


def _readings(search: Sequence[TrialResult], rung: int) -> list[tuple[Candidate, float]]:
    return [(result.candidate, loss) for result in search if (loss := result.loss_at(rung)) is not None]
