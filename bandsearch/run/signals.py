"""How far the cheap signals agreed with the dear ones: rank correlations over what the run measured anyway."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bandsearch.values.candidate import Candidate
from bandsearch.values.evaluation import Winner
from bandsearch.values.profile import SensitivityProfile
from bandsearch.values.trial import TrialResult

LEAST_PAIRS = 5


@dataclass(frozen=True)
class Signal:
    """Spearman's rank correlation of `predictor` with `outcome` over `pairs` candidates; 1 is perfect agreement."""

    predictor: str
    outcome: str
    correlation: float
    pairs: int


def signals(
    search: Sequence[TrialResult], winner: Winner, profile: SensitivityProfile, rungs: Sequence[int]
) -> tuple[Signal, ...]:
    """Proxy against confirmation at every rung; the probe, and the band's width alone, against the longest proxy.

    Width alone is shown because it predicts short trainings well: a probe that does no better has found nothing.
    """
    confirmed = {finalist.candidate.identity: finalist.loss for finalist in winner.finalists}
    found = []
    for rung in rungs:
        reached = _losses_at(search, rung)
        pairs = [
            (loss, confirmed[candidate.identity]) for candidate, loss in reached if candidate.identity in confirmed
        ]
        found.append(_signal(f"loss after {rung} steps", "confirmed loss", pairs))
    measured = [(rung, reached) for rung in rungs if len(reached := _losses_at(search, rung)) >= LEAST_PAIRS]
    if measured:
        rung, reached = measured[-1]
        outcome = f"loss after {rung} steps"
        score = profile.layer_scores
        probe = [(-sum(score[layer] for layer in candidate.layers), loss) for candidate, loss in reached]
        width = [(-float(len(candidate.layers)), loss) for candidate, loss in reached]
        found.append(_signal("probe: summed sensitivity of the band", outcome, probe))
        found.append(_signal("width of the band alone", outcome, width))
    return tuple(signal for signal in found if signal is not None)


def _losses_at(search: Sequence[TrialResult], rung: int) -> list[tuple[Candidate, float]]:
    return [(trial.candidate, loss) for trial in search if (loss := trial.loss_at(rung)) is not None]


def _signal(predictor: str, outcome: str, pairs: Iterable[tuple[float, float]]) -> Signal | None:
    from scipy.stats import spearmanr

    finite = [pair for pair in pairs if all(map(math.isfinite, pair))]
    predicted, measured = [pair[0] for pair in finite], [pair[1] for pair in finite]
    # Ranks of equal values say nothing.
    if len(finite) < LEAST_PAIRS or len(set(predicted)) < 2 or len(set(measured)) < 2:
        return None
    return Signal(predictor, outcome, float(spearmanr(predicted, measured).statistic), len(finite))
