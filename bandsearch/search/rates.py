"""Rates of full depth: all that is decided where a budget pays for no comparison with it.

Two have the final training, side by side, and the better one is handed over. Shorter trainings would leave time for
more of them, but there the higher rate passes for better, more often than not wrongly: at a third of the length the
better of two is no more than a guess, at a ninth it is worse than one (results/LOG.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from bandsearch.adapters.lora import trainable_parameters
from bandsearch.search.baselines import habit, tuned_rates
from bandsearch.search.candidates import CandidateCode
from bandsearch.values.atlas import Suggestion
from bandsearch.values.band import Band
from bandsearch.values.candidate import Candidate, Role
from bandsearch.values.evaluation import Choice, Winner
from bandsearch.values.layout import Layout
from bandsearch.values.plan import ARMS
from bandsearch.values.profile import SensitivityProfile

# By what a rate is divided that breaks off, or would: what looks best after a few steps does in many.
RETREAT = 3.0


def full_depth_alone(
    code: CandidateCode,
    layout: Layout,
    profile: SensitivityProfile,
    trainings: int,
    tolerance: float,
    prior: Sequence[Suggestion] = (),
) -> Winner:
    """Full depth at two rates, as winner and baseline, until `better_rate` can tell; at one where `trainings` is one.

    Of two they are the probe's best and the next one, which is lower where the space has it; a rate that `prior` knows
    takes the place of the closer one, since what was best for other data need not be here. One by itself is what
    `prior` knows, or a third of the probe's best.
    """
    rates = tuned_rates(code, profile.rate_range.best)[:ARMS]
    # The last on all layers is full depth's own, whatever its targets are called here, if not at the probe's rate.
    full = [each.candidate.learning_rate for each in prior if len(each.candidate.layers) == code.layer_count]
    known = [rate for rate in full if not math.isclose(rate, profile.rate_range.best, rel_tol=1e-3)][-1:]
    if known:
        rates = (*known, max(rates, key=lambda rate: abs(math.log(rate / known[0]))))
    if trainings < ARMS:
        # No lower than somebody has asked for.
        rates = (*known, max(rates[0] / RETREAT, code.space.learning_rate.low or 0.0))[:1]
        where = "the learning rate that an earlier run found" if known else "a third of the probe's best learning rate"
        reason = f"One training of full depth is all that fits, at {where}."
    elif len(set(rates)) > 1:
        reason = "Full depth is trained at two learning rates, and validation tells which is kept."
    else:
        reason = "The search space has one learning rate."
    candidates = [habit(code, Band.full(code.layer_count), rate) for rate in rates]
    parameters = trainable_parameters(candidates[0], layout)
    return Winner(
        candidate=candidates[0],
        role=Role.FULL_DEPTH,
        trainable_parameters=parameters,
        choice=Choice.UNCOMPARED,
        reason=reason,
        baseline=candidates[-1],
        baseline_parameters=parameters,
        finalists=(),
        tolerance=tolerance,
    )


def better_rate(winner: Winner, losses: Mapping[Candidate, float]) -> Winner:
    """Of two rates the one with the lower validation loss (nats per token) after the final trainings."""
    best, other = sorted((winner.candidate, winner.baseline), key=lambda each: losses[each])
    rate, left = (winner.as_trained(each).learning_rate for each in (best, other))
    reason = (
        f"Of two learning rates the better one on validation is kept: {rate:.2g}, with a loss of {losses[best]:.4f} "
        f"against {losses[other]:.4f} at {left:.2g}."
    )
    return winner.model_copy(update={"candidate": best, "baseline": best, "reason": reason})
