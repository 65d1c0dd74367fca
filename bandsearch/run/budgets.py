"""Budgets as they are named to a person: in the unit that was given, rounded. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable

from bandsearch.values.budget import Budget
from bandsearch.values.spec import RunSpec

# From one budget that is tried to the next.
LARGER = 1.05


def least_budget(spec: RunSpec, wall_seconds: float, does: Callable[[float], bool]) -> Budget:
    """The smallest from the one given on, `wall_seconds` of wall time, whose wall time does; in the person's own unit.

    It is tried as it is named, rounded: more time also buys longer trainings and a dearer evaluation, so it may not do.
    """
    wall, named = wall_seconds, _in_unit(spec, wall_seconds, wall_seconds)
    while not does(_wall_of(spec, named, wall_seconds)):
        wall *= LARGER
        named = _in_unit(spec, wall, wall_seconds)
    return named


def _in_unit(spec: RunSpec, seconds: float, wall_seconds: float) -> Budget:
    """A budget in the person's own unit that lasts `seconds` of wall time, rounded up to whole minutes from ten on."""
    given = _given(spec)
    amount = seconds * given.seconds / wall_seconds
    unit = 60 if amount > 600 else 1
    return given.model_copy(update={"seconds": math.ceil(amount / unit) * unit})


def _wall_of(spec: RunSpec, budget: Budget, wall_seconds: float) -> float:
    """What of a budget in the person's own unit is wall time, seconds."""
    return budget.seconds * wall_seconds / _given(spec).seconds


def _given(spec: RunSpec) -> Budget:
    return spec.budget or Budget.parse("1s")
