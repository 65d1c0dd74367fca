"""Where a budget pays for no comparison, two rates of full depth are tried in what time there is."""

from __future__ import annotations

import pytest
from costs import costs_of
from surface import LAYERS, LAYOUT, RATES, MemoryRecords, PlantedPool, Surface, plan, profile

from bandsearch.search.candidates import CandidateCode
from bandsearch.search.clock import Clock
from bandsearch.search.confirm import confirm
from bandsearch.search.rates import SHORTEST, Rates, rates_of, rates_steps, side_by_side
from bandsearch.search.search import searched
from bandsearch.values.atlas import Suggestion
from bandsearch.values.band import Band
from bandsearch.values.candidate import Candidate, Role
from bandsearch.values.evaluation import Choice, Winner
from bandsearch.values.space import RateSpace, SearchSpace
from bandsearch.values.trial import TrialStage, TrialState

FULL_STEPS = 270


def rates(space: SearchSpace | None = None, prior: tuple[Suggestion, ...] = ()) -> Rates:
    return rates_of(CandidateCode(space or SearchSpace(name="planted"), LAYOUT, RATES), LAYOUT, profile(), 0, prior)


def handed_over(
    surface: Surface,
    trainings: float,
    records: MemoryRecords | None = None,
    asked: Rates | None = None,
    engines: int = 1,
) -> tuple[Winner, MemoryRecords]:
    """With time for so many trainings of full length, at the cost that the clock goes by."""
    records = records or MemoryRecords()
    seconds_per_step = 1e-2
    planned = plan(finalists=0, confirm_seeds=1, engines=engines, seconds_per_step=seconds_per_step)
    seconds = trainings * Clock(lambda: 0.0, planned.costs).seconds(FULL_STEPS) + 0.5
    winner = confirm(
        PlantedPool(surface, size=engines),
        results=[],
        layout=LAYOUT,
        profile=profile(),
        plan=planned,
        seed=0,
        records=records,
        wall_left=lambda: seconds - sum(result.steps * seconds_per_step for result in records.results()),
        rates=asked or rates(),
    )
    assert (winner.role, winner.choice) == (Role.FULL_DEPTH, Choice.UNCOMPARED)
    assert winner.candidate == winner.baseline
    return winner, records


@pytest.mark.parametrize("planted", [3e-4, 1e-3])
def test_of_two_rates_the_planted_one_is_handed_over(planted: float) -> None:
    winner, records = handed_over(Surface(rate=planted), 2)
    assert winner.candidate.learning_rate == pytest.approx(planted, rel=0.1)
    assert [result.steps for result in records.results()] == [FULL_STEPS] * 2


def test_with_less_time_both_are_shorter_and_with_too_little_neither_is_begun() -> None:
    """One by itself tells nothing, and short ones prefer the higher rate."""
    winner, records = handed_over(Surface(rate=3e-4), 1.4)
    steps = {result.steps for result in records.results()}
    assert len(records.results()) == 2
    assert len(steps) == 1
    assert 0.6 * FULL_STEPS < steps.pop() < 0.75 * FULL_STEPS
    winner, records = handed_over(Surface(rate=3e-4), 0.9)
    assert records.results() == []
    assert winner.candidate.learning_rate == RATES.best / 3


def test_untried_a_rate_stays_within_the_bounds_of_the_space_and_the_atlas_is_believed() -> None:
    bounded = rates(SearchSpace(name="x", learning_rate=RateSpace(low=8e-4, high=2e-3)))
    assert bounded.untried.candidate.learning_rate == 8e-4
    known = Candidate.full_depth(LAYERS, rank=16, alpha=32, learning_rate=4e-3)
    band = known.model_copy(update={"bands": (Band(start=0, stop=3),)})
    elsewhere = known.model_copy(update={"targets": ("attention",)})
    for last in (known, elsewhere):
        found = rates(prior=tuple(Suggestion(candidate=each, reason="") for each in (band, last)))
        assert [each.candidate.learning_rate for each in found.tried] == [4e-3, pytest.approx(6.325e-4, rel=1e-3)]
        assert [each.proposed_by for each in found.tried] == ["atlas", "baseline"]
        assert found.untried.candidate == known
    fixed = rates(SearchSpace(name="x", learning_rate=RateSpace(low=1e-3, high=1e-3)))
    assert handed_over(Surface(), 5, asked=fixed)[0].candidate.learning_rate == 1e-3


def test_a_rate_that_diverges_leaves_the_other_and_where_both_do_a_third_of_the_lower_is_left() -> None:
    winner, records = handed_over(Surface(diverges_above=5e-4), 2)
    assert winner.candidate.learning_rate == pytest.approx(3.162e-4)
    assert [result.state for result in records.results()] == [TrialState.DIVERGED]
    winner, _ = handed_over(Surface(diverges_above=2e-4), 2, engines=2)
    assert winner.candidate.learning_rate == pytest.approx(3.162e-4 / 3)


def test_what_was_tried_is_not_tried_again_and_the_other_trains_as_long() -> None:
    surface = Surface(rate=3e-4)
    whole, records = handed_over(surface, 1.4)
    first, second = records.results()
    kept = MemoryRecords()
    kept.append(first)
    again, trained = handed_over(surface, 3, kept)
    assert [result.steps for result in trained.results()] == [first.steps, second.steps]
    assert again == whole


def test_rates_alone_are_no_search_that_a_larger_budget_would_take_for_its_own() -> None:
    """Its confirmation would find nothing but full depth, and say that nothing is better."""
    _, records = handed_over(Surface(), 2)
    assert {result.stage for result in records.results()} == {TrialStage.RATES}
    assert searched(records) == []


@pytest.mark.parametrize(("engines", "packing"), [(1, 1), (1, 4), (2, 1), (2, 4), (3, 2)])
def test_two_fit_as_soon_as_they_fit_one_after_the_other_however_many_a_pass_has_room_for(
    engines: int, packing: int
) -> None:
    costs = costs_of(0.1, packing=packing, seconds_per_packed_step=0.095 * packing, seconds_per_validation=0.3)
    alone = Clock(lambda: 0.0, costs_of(0.1, seconds_per_validation=0.3)).seconds(100)
    rounds = 2 if engines == 1 else 1
    steps = rates_steps(costs, rounds * (alone + 0.3), 2, engines, 200)
    assert steps is not None
    assert SHORTEST * 200 <= steps <= 115
    assert rates_steps(costs, rounds * alone, 2, engines, 400) is None
    # The clock that lets each begin agrees.
    shared = side_by_side(costs, 2, engines)
    together = 2 / (engines * shared.packing)
    assert max(1, together) * Clock(lambda: 0.0, shared).seconds(steps) <= rounds * (alone + 0.3)
