"""Rank correlations: how far the cheap signals agreed with the dear ones, over what a run measured anyway."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from scipy import stats

from bandsearch.search.strata import width_class
from bandsearch.values.candidate import Candidate
from bandsearch.values.profile import SensitivityProfile
from bandsearch.values.trial import TrialResult, TrialStage, TrialState

# Pairs that a correlation takes, and candidates at a rung that the probe is judged by.
LEAST_PAIRS, LEAST_READINGS = 3, 5


@dataclass(frozen=True)
class Signal:
    """Spearman's rank correlation of `predictor` with `outcome` over `pairs` candidates; 1 is perfect agreement.

    `within` compares only candidates of one width class (narrow, middle, wide), because width alone predicts short
    trainings well: a signal that says no more than the width has found nothing. None: too few to say.
    """

    predictor: str
    outcome: str
    across: float | None
    within: float | None
    pairs: int


def signals(results: Sequence[TrialResult], profile: SensitivityProfile, rungs: Sequence[int]) -> tuple[Signal, ...]:
    """Every rung against confirmation; the probe, and width alone, against the longest rung many candidates reached.

    `results` are those of both stages. What there are too few candidates for is left out.
    """
    search = [result for result in results if result.stage is TrialStage.SEARCH]
    by_candidate: dict[Candidate, list[float]] = {}
    for result in results:
        if result.stage is TrialStage.CONFIRM and result.state is TrialState.COMPLETE:
            by_candidate.setdefault(result.candidate, []).append(result.points[-1].loss)
    confirmed = {candidate: fmean(losses) for candidate, losses in by_candidate.items()}
    found = []
    for rung in rungs:
        read = [(candidate, loss) for candidate, loss in _readings(search, rung) if candidate in confirmed]
        early, late = [loss for _, loss in read], [confirmed[candidate] for candidate, _ in read]
        classes = [width_class(candidate, profile.layer_count) for candidate, _ in read]
        name = f"loss after {rung} steps"
        found.append(Signal(name, "confirmed loss", spearman(early, late), within(early, late, classes), len(read)))
    measured = [(rung, read) for rung in rungs if len(read := _readings(search, rung)) >= LEAST_READINGS]
    for rung, read in measured[-1:]:
        outcome, losses = f"loss after {rung} steps", [loss for _, loss in read]
        probe = [-sum(profile.layer_scores[layer] for layer in candidate.layers) for candidate, _ in read]
        width = [-float(len(candidate.layers)) for candidate, _ in read]
        classes = [width_class(candidate, profile.layer_count) for candidate, _ in read]
        agreed = within(probe, losses, classes)
        found.append(Signal("probe: sensitivity of the band", outcome, spearman(probe, losses), agreed, len(read)))
        found.append(Signal("width of the band alone", outcome, spearman(width, losses), None, len(read)))
    return tuple(signal for signal in found if signal.across is not None)


def spearman(one: Sequence[float], other: Sequence[float]) -> float | None:
    """None for fewer than three pairs, or where one side does not vary."""
    if len(one) < LEAST_PAIRS or len(set(one)) < 2 or len(set(other)) < 2:
        return None
    return float(stats.spearmanr(one, other).statistic)


def within(one: Sequence[float], other: Sequence[float], groups: Sequence[object]) -> float | None:
    """The mean of the groups' correlations, weighted by their size."""
    found: list[tuple[int, float]] = []
    for group in dict.fromkeys(groups):
        members = [index for index, each in enumerate(groups) if each == group]
        rho = spearman([one[index] for index in members], [other[index] for index in members])
        if rho is not None:
            found.append((len(members), rho))
    return sum(size * rho for size, rho in found) / sum(size for size, _ in found) if found else None


def _readings(search: Sequence[TrialResult], rung: int) -> list[tuple[Candidate, float]]:
    return [(result.candidate, loss) for result in search if (loss := result.loss_at(rung)) is not None]
