"""Rates of full depth: all that is tried where a budget pays for no comparison with it.

Two are trained as the winner is in the end, on one seed, and the better one is handed over. In shorter trainings the
higher one passes for better, more often than not wrongly: at a third of the length the better of two is no more than a
guess, at a ninth it is worse than one (results/LOG.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from bandsearch.adapters.lora import trainable_parameters
from bandsearch.search.baselines import habit, tuned_rates
from bandsearch.search.candidates import CandidateCode
from bandsearch.search.clock import Clock
from bandsearch.search.proposal import Proposal
from bandsearch.values.atlas import Suggestion
from bandsearch.values.band import Band
from bandsearch.values.candidate import Role
from bandsearch.values.layout import Layout
from bandsearch.values.plan import FULL_DEPTHS, Costs
from bandsearch.values.profile import SensitivityProfile

# Of the final training's length, what tells something about it.
SHORTEST = 1 / 2
# What looks best after a few steps breaks off in many.
RETREAT = 3.0
# From the choice of a length until the trainings run.
BEGIN_SECONDS = 0.2


class Rates(NamedTuple):
    """Those to try, and what is handed over where there is no time for that."""

    tried: tuple[Proposal, ...]
    untried: Proposal


def rates_of(
    code: CandidateCode, layout: Layout, profile: SensitivityProfile, seed: int, prior: Sequence[Suggestion] = ()
) -> Rates:
    """Around the rate that `prior` knows, or else the probe's best, a third of which is handed over untried."""
    band = Band.full(code.layer_count)
    propose = partial(_proposal, code, layout, band, seed)
    # The last on all layers: it is full depth's own, whatever its targets are called here.
    known = [each.candidate.learning_rate for each in prior if len(each.candidate.layers) == code.layer_count][-1:]
    by = "atlas" if known else "baseline"
    rates = tuned_rates(code, known[0] if known else profile.rate_range.best)[:FULL_DEPTHS]
    # No lower than somebody has asked for.
    retreat = max(rates[0] / RETREAT, code.space.learning_rate.low or 0.0)
    return Rates(
        tried=tuple(propose(number, rate, "baseline" if number else by) for number, rate in enumerate(rates)),
        untried=propose(0, rates[0], by) if known else propose(len(rates), retreat, "confirm"),
    )


def side_by_side(costs: Costs, rates: int, engines: int) -> Costs:
    """Where so many are shared out over the engines, as many as can train at a time."""
    return costs.packed(math.ceil(rates / engines))


def rates_steps(costs: Costs, seconds: float, rates: int, engines: int, full_steps: int) -> int | None:
    """How long so many can be trained in `seconds`, up to a final training of `full_steps`; None where that is too
    short to tell anything."""
    if rates < FULL_DEPTHS:
        return None
    costs = side_by_side(costs, rates, engines)
    rounds = math.ceil(rates / (engines * costs.packing))
    clock = Clock(lambda: seconds / rounds - BEGIN_SECONDS, costs)
    step = clock.seconds(1) - clock.seconds(0)
    steps = min(full_steps, math.floor((clock.left - clock.seconds(0)) / step))
    return steps if steps >= SHORTEST * full_steps else None


def _proposal(
    code: CandidateCode, layout: Layout, band: Band, seed: int, number: int, rate: float, proposed_by: str
) -> Proposal:
    candidate = habit(code, band, rate)
    return Proposal(
        number=number,
        candidate=candidate,
        role=Role.FULL_DEPTH,
        proposed_by=proposed_by,
        seed=seed,
        trainable_parameters=trainable_parameters(candidate, layout),
    )
