"""How finalists are confirmed with the time there is."""

from __future__ import annotations

import pytest
from costs import costs_of

from bandsearch.run.confirming import (
    LEAST_TRAININGS,
    NOTHING,
    ConfirmChoice,
    confirm_choice,
    confirm_choices,
    confirm_seconds,
)
from bandsearch.search.clock import Clock
from bandsearch.values.space import SearchSpace
from bandsearch.values.spec import DataSpec, ModelSpec, RunSpec

CHOICES = confirm_choices(bounded=True)


def chosen(share: float) -> ConfirmChoice:
    """Where one training of the whole length takes a second."""
    return confirm_choice(CHOICES, lambda trainings, fraction: trainings * fraction, share)


@pytest.mark.parametrize("trainings", [LEAST_TRAININGS, 8, 12, 20, 42, 100])
def test_longer_trainings_come_before_more_finalists(trainings: int) -> None:
    found = chosen(trainings)
    assert found.fraction == 1.0
    # All that fit, or the fewest there are; `next_training` leaves out whom there is no time for.
    fewest = min(choice.trainings for choice in CHOICES)
    assert found.trainings <= max(trainings, fewest)


def test_where_too_little_could_be_compared_trainings_are_shorter() -> None:
    assert chosen(LEAST_TRAININGS * 0.99).fraction == pytest.approx(2 / 3)
    assert chosen(LEAST_TRAININGS * 0.6).fraction == pytest.approx(1 / 2)


def test_where_too_little_fits_at_any_length_nothing_is_chosen() -> None:
    assert chosen(LEAST_TRAININGS / 2 + 0.01).finalists > 0
    assert chosen(LEAST_TRAININGS / 2 - 0.01) is NOTHING


@pytest.mark.parametrize(("engines", "packing"), [(1, 1), (2, 1), (2, 4), (1, 8)])
def test_what_is_planned_does_for_the_pass_that_few_trainings_share(engines: int, packing: int) -> None:
    """The clock lets none begin that would not end in time, at the cost of a full pass."""
    costs = costs_of(0.1, packing=packing, seconds_per_packed_step=0.08 * packing, seconds_per_validation=0.3)
    spec = RunSpec(model=ModelSpec(name="demo"), data=DataSpec(name="demo:x"), space=SearchSpace(name="x"), trials=9)
    planned = confirm_seconds(spec, costs, 2, 60, 0, engines)
    clock = Clock(lambda: planned + 1e-6, costs)
    assert clock.fits(60)
    assert clock.rounds(60) * engines * packing >= 2
