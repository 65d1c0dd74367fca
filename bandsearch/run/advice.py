"""Advice: what budget would be enough, where one buys no search that could find anything. Pure."""

from __future__ import annotations

from collections.abc import Callable

from bandsearch.run.budgets import least_budget
from bandsearch.run.confirming import LEAST_TRAININGS, confirm_seconds
from bandsearch.values.plan import Plan
from bandsearch.values.spec import RunSpec

# Five are baselines: with fewer candidates hardly a band is tried.
FEWEST_CANDIDATES = 10


def with_advice(plan: Plan, spec: RunSpec, plan_of: Callable[[float], Plan]) -> Plan:
    """`plan`, with a sentence where its budget is too small; `plan_of` makes that of another wall time (seconds)."""
    if plan.wall_seconds is None or plan.trial_limit is not None or _is_enough(plan, spec):
        return plan
    enough = least_budget(spec, plan.wall_seconds, lambda wall: _is_enough(plan_of(wall), spec))
    return plan.model_copy(update={"advice": f"{_shortage(plan, spec)} About {enough} would be enough."})


def _shortage(plan: Plan, spec: RunSpec) -> str:
    if plan.compares:
        return (
            f"This budget buys about {plan.expected_trials} candidates and {_trainings(plan, spec)} trainings to "
            "confirm them, too few to find a band: full-depth LoRA is likely to be handed over."
        )
    rate = (
        "the better of two learning rates" if plan.final_trainings > 1 else "a third of the rate that the probe finds"
    )
    return (
        "This budget does not buy enough trainings to compare anything with full-depth LoRA: that is handed over, at "
        f"{rate}."
    )


def _is_enough(plan: Plan, spec: RunSpec) -> bool:
    return plan.expected_trials >= FEWEST_CANDIDATES and _trainings(plan, spec) >= LEAST_TRAININGS


def _trainings(plan: Plan, spec: RunSpec) -> int:
    """How many trainings the confirmation has time for."""
    together = confirm_seconds(spec, plan.costs, plan.engines, plan.confirm_steps, plan.retention_texts, plan.engines)
    return plan.engines * int(plan.seconds_of("confirm") / together)
