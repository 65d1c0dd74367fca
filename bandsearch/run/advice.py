"""Advice: what budget would be enough, where one buys no search that could find anything. Pure."""

from __future__ import annotations

from collections.abc import Callable

from bandsearch.run.planning import LEAST_TRAININGS, confirm_seconds, in_unit, wall_of
from bandsearch.values.plan import Plan
from bandsearch.values.spec import RunSpec

# Five are baselines: with fewer candidates hardly a band is tried.
FEWEST_CANDIDATES = 10
LARGER = 1.1


def with_advice(plan: Plan, spec: RunSpec, plan_of: Callable[[float], Plan]) -> Plan:
    """`plan`, with a sentence where its budget is too small; `plan_of` makes that of another wall time (seconds)."""
    if plan.wall_seconds is None or plan.trial_limit is not None or _is_enough(plan):
        return plan
    wall = plan.wall_seconds
    enough = in_unit(spec, wall, wall)
    # The budget as it is named, rounded: more time also buys longer trainings, so it may not do.
    while not _is_enough(plan_of(wall_of(spec, enough, plan.wall_seconds))):
        wall *= LARGER
        enough = in_unit(spec, wall, plan.wall_seconds)
    advice = (
        f"This budget buys about {plan.expected_trials} candidates and {_trainings(plan)} trainings to confirm them, "
        f"too few to find a band: full-depth LoRA is likely to be handed over. About {enough} would be enough."
    )
    return plan.model_copy(update={"advice": advice})


def _is_enough(plan: Plan) -> bool:
    return plan.expected_trials >= FEWEST_CANDIDATES and _trainings(plan) >= LEAST_TRAININGS


def _trainings(plan: Plan) -> int:
    """How many trainings the confirmation has time for."""
    each = confirm_seconds(
        plan.engines, plan.confirm_steps / plan.full_steps, plan.full_steps, plan.costs, plan.engines
    )
    return plan.engines * int(plan.seconds_of("confirm") / each) if each else LEAST_TRAININGS
