"""Where a budget pays for no comparison, full depth's final training is at two rates, of which the better is kept."""

from __future__ import annotations

import pytest
from surface import LAYERS, LAYOUT, RATES, profile

from bandsearch.search.candidates import CandidateCode
from bandsearch.search.rates import better_rate, full_depth_alone
from bandsearch.values.atlas import Suggestion
from bandsearch.values.band import Band
from bandsearch.values.candidate import Candidate, Role
from bandsearch.values.evaluation import Choice, Trained, Winner
from bandsearch.values.space import RateSpace, SearchSpace

LOWER = 3.162e-4


def alone(trainings: int, known: float | None = None, bounds: RateSpace | None = None) -> Winner:
    space = SearchSpace(name="planted", learning_rate=bounds or RateSpace())
    prior: tuple[Suggestion, ...] = ()
    if known is not None:
        full = Candidate.full_depth(LAYERS, rank=16, alpha=32, learning_rate=known)
        band = full.model_copy(update={"bands": (Band(start=0, stop=3),), "learning_rate": 1.0})
        prior = tuple(Suggestion(candidate=each, reason="") for each in (band, full))
    found = full_depth_alone(CandidateCode(space, LAYOUT, RATES), LAYOUT, profile(), trainings, 0.01, prior)
    assert (found.role, found.choice, found.tolerance) == (Role.FULL_DEPTH, Choice.UNCOMPARED, 0.01)
    assert {len(each.layers) for each in (found.candidate, found.baseline)} == {LAYERS}
    assert found.trainable_parameters == found.baseline_parameters > 0
    return found


def rates_of(winner: Winner) -> list[float]:
    return [each.learning_rate for each in dict.fromkeys((winner.candidate, winner.baseline))]


def test_two_are_the_probes_best_and_a_lower_one() -> None:
    assert rates_of(alone(2)) == [RATES.best, pytest.approx(LOWER)]


@pytest.mark.parametrize(("known", "other"), [(RATES.best, LOWER), (2e-3, LOWER), (LOWER, RATES.best), (1e-4, 1e-3)])
def test_a_rate_that_the_atlas_knows_takes_the_place_of_the_closer_one(known: float, other: float) -> None:
    assert rates_of(alone(2, known)) == [known, pytest.approx(other)]


def test_one_by_itself_is_the_atlas_or_a_third_of_the_probes_within_the_bounds_of_the_space() -> None:
    assert rates_of(alone(1)) == [RATES.best / 3]
    assert "third" in alone(1).reason
    assert rates_of(alone(1, 2e-3)) == [2e-3]
    assert "earlier run" in alone(1, 2e-3).reason
    assert rates_of(alone(1, bounds=RateSpace(low=8e-4, high=2e-3))) == [8e-4]


def test_a_space_of_one_rate_has_one_training() -> None:
    for trainings in (1, 2):
        assert rates_of(alone(trainings, bounds=RateSpace(low=1e-3, high=1e-3))) == [1e-3]
    assert "has one learning rate" in alone(2, bounds=RateSpace(low=1e-3, high=1e-3)).reason


@pytest.mark.parametrize("best", [0, 1])
def test_the_rate_with_the_lower_loss_is_kept_and_named_as_it_was_trained(best: int) -> None:
    both = alone(2)
    pair = (both.candidate, both.baseline)
    lowered = Trained(candidate=pair[0], learning_rate=RATES.best / 3, steps=40, kept_step=40)
    both = both.model_copy(update={"trainings": (lowered,)})
    kept = better_rate(both, {pair[best]: 0.25, pair[1 - best]: 1.5})
    assert kept.candidate == kept.baseline == pair[best]
    assert kept.choice is Choice.UNCOMPARED
    said = [f"{RATES.best / 3:.2g}", f"{LOWER:.2g}"]
    assert f"kept: {said[best]}, with a loss of 0.2500 against 1.5000 at {said[1 - best]}." in kept.reason
