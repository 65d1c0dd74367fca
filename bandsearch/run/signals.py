"""How far the cheap signals agreed with the dear ones: rank correlations over what the run measured anyway."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bandsearch.search.correlation import proxy_correlation
from bandsearch.search.strata import WidthClass, width_class
from bandsearch.values.profile import SensitivityProfile
from bandsearch.values.trial import TrialResult

LEAST_PAIRS = 5


@dataclass(frozen=True)
class Signal:
    """Spearman's rank correlation of `predictor` with `outcome` over `pairs` candidates; 1 is perfect agreement.

    `within` compares only candidates of one width class (narrow, middle, wide), because width alone predicts short
    trainings well: a signal that says no more than the width has found nothing.
    """

    predictor: str
    outcome: str
    across: float | None
    within: float | None
    pairs: int


def signals(results: Sequence[TrialResult], profile: SensitivityProfile, rungs: Sequence[int]) -> tuple[Signal, ...]:
    """Every rung against confirmation; the probe, and width alone, against the longest rung many candidates reached."""
    found = []
    for entry in proxy_correlation(results, profile.layer_count):
        if entry.across is not None:
            name = f"loss after {entry.steps} steps"
            found.append(Signal(name, "confirmed loss", entry.across, entry.within, entry.pairs))
    search = [result for result in results if result.stage == "search"]
    reached = [(rung, _readings(search, rung)) for rung in rungs]
    measured = [(rung, readings) for rung, readings in reached if len(readings) >= LEAST_PAIRS]
    if measured:
        rung, readings = measured[-1]
        score = profile.layer_scores
        probe = [-sum(score[layer] for layer in result.candidate.layers) for result, _ in readings]
        width = [-float(len(result.candidate.layers)) for result, _ in readings]
        losses = [loss for _, loss in readings]
        classes = [width_class(result.candidate, profile.layer_count) for result, _ in readings]
        outcome = f"loss after {rung} steps"
        within = _within(probe, losses, classes)
        found.append(Signal("probe: sensitivity of the band", outcome, _spearman(probe, losses), within, len(losses)))
        found.append(Signal("width of the band alone", outcome, _spearman(width, losses), None, len(losses)))
    return tuple(found)


def _readings(search: Sequence[TrialResult], rung: int) -> list[tuple[TrialResult, float]]:
    return [(result, loss) for result in search if (loss := result.loss_at(rung)) is not None]


def _within(predicted: Sequence[float], losses: Sequence[float], classes: Sequence[WidthClass]) -> float | None:
    """The mean over width classes of at least LEAST_PAIRS candidates, weighted by their size."""
    found = []
    for kind in WidthClass:
        members = [index for index, one in enumerate(classes) if one is kind]
        rho = _spearman([predicted[index] for index in members], [losses[index] for index in members])
        if rho is not None:
            found.append((len(members), rho))
    return sum(size * rho for size, rho in found) / sum(size for size, _ in found) if found else None


def _spearman(predicted: Sequence[float], losses: Sequence[float]) -> float | None:
    """None for fewer than LEAST_PAIRS pairs, or where one side does not vary."""
    from scipy.stats import spearmanr

    if len(predicted) < LEAST_PAIRS or len(set(predicted)) < 2 or len(set(losses)) < 2:
        return None
    return float(spearmanr(predicted, losses).statistic)
