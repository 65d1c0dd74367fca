"""The range test finds the rates that train, wherever they lie."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandsearch.probe.rates import decide, range_test
from bandsearch.values.errors import ModelError


def adam_loss(size: float, rate: float, steps: int, seed: int = 0) -> float | None:
    """Adam on a noisy, badly scaled quadratic whose weights have to move by about `size`: the best rate is
    proportional to it. None where it diverges."""
    source = random.Random(seed)
    goals = [size * source.uniform(0.5, 1.5) for _ in range(48)]
    curvatures = [4.0 ** -(index % 8) for index in range(48)]
    weights, first, second = [0.0] * 48, [0.0] * 48, [0.0] * 48
    for step in range(1, steps + 1):
        for index, (goal, sharpness) in enumerate(zip(goals, curvatures, strict=True)):
            slope = sharpness * ((weights[index] - goal) / size + source.gauss(0, 0.3))
            first[index] = 0.9 * first[index] + 0.1 * slope
            second[index] = 0.999 * second[index] + 0.001 * slope**2
            mean, spread = first[index] / (1 - 0.9**step), second[index] / (1 - 0.999**step)
            weights[index] -= rate * mean / (math.sqrt(spread) + 1e-12)
    loss = quadratic(weights, goals, curvatures, size)
    return None if loss > 1e4 else loss


def quadratic(weights: list[float], goals: list[float], curvatures: list[float], size: float) -> float:
    return sum(c * ((w - g) / size) ** 2 for w, g, c in zip(weights, goals, curvatures, strict=True))


@pytest.mark.parametrize("size", [1e-3, 1e-2, 0.1, 1.0])
def test_the_best_rate_of_a_ten_times_longer_training_lies_within_the_span(size: float) -> None:
    """Models whose weights have to move by a thousandth want rates a thousand times smaller than by one."""
    base = adam_loss(size, 1e-12, 1)
    assert base is not None
    found = range_test(base, lambda rate: adam_loss(size, rate, 12), lambda runs: runs < 7)
    grid = [10 ** (exponent / 4) for exponent in range(-24, 2)]
    losses = {rate: adam_loss(size, rate, 120) for rate in grid}
    best = min((rate for rate in grid if losses[rate] is not None), key=lambda rate: losses[rate])
    assert found.low <= best <= found.high
    assert found.high / found.low < 1e3


@given(st.floats(-5, -1), st.floats(0.5, 1.5), st.floats(0.3, 5), st.floats(0.5, 2))
@settings(max_examples=100, deadline=None)
def test_the_span_holds_the_planted_best_rate(centre: float, spread: float, fall: float, room: float) -> None:
    base = 6.0

    def loss_at(rate: float) -> float | None:
        away = math.log10(rate) - centre
        return None if away > room else base - fall * math.exp(-((away / spread) ** 2))

    found = range_test(base, loss_at, lambda runs: runs < 9)
    assert found.low < 10**centre < found.high
    assert found.low < found.best < found.high
    assert abs(math.log10(found.best) - centre) <= 0.5 + 1e-9
    assert [point.learning_rate for point in found.points] == sorted(point.learning_rate for point in found.points)


def test_diverging_rates_are_recorded_and_never_the_best() -> None:
    found = range_test(3.0, lambda rate: None if rate > 2e-4 else 3.0 - 1e4 * rate, lambda runs: runs < 9)
    assert found.best == pytest.approx(1e-4)
    assert any(point.loss is None and point.learning_rate > 2e-4 for point in found.points)


def test_a_model_that_diverges_everywhere_is_refused() -> None:
    with pytest.raises(ModelError, match="diverges at every rate"):
        range_test(3.0, lambda rate: None, lambda runs: True)


def test_where_nothing_is_learned_the_highest_harmless_rate_is_taken() -> None:
    found = decide(2.0, {-4.0: 2.0001, -3.0: 2.001, -2.0: 2.6, -5.0: 1.9999})
    assert found.best == pytest.approx(1e-3)
    assert found.low < found.best < found.high


def test_one_run_is_enough_for_an_answer() -> None:
    found = range_test(3.0, lambda rate: 2.0, lambda runs: False)
    assert len(found.points) == 1
    assert found.low < found.best < found.high


@given(st.floats(-4, -2))
@settings(max_examples=100, deadline=None)
def test_where_time_lets_one_rate_be_tried_those_a_decade_away_are_still_searched(centre: float) -> None:
    """What is best of one is no bound: nothing above it was looked at."""
    found = range_test(3.0, lambda rate: 2.0 + abs(math.log10(rate) - centre), lambda runs: False)
    assert found.low <= 10**centre * (1 + 1e-9)
    assert found.high >= 10**centre * (1 - 1e-9)
    # Nor is the higher one of two, unless the test ends there.
    assert decide(3.0, {-3.0: 2.5, -2.0: 2.0}).high == pytest.approx(0.1)
    # Between two that lie a decade apart the best may lie anywhere.
    assert decide(3.0, {-3.0: 2.0, -2.0: 3.5}).high == pytest.approx(10**-2.5)
    assert decide(3.0, {-3.0: 2.0, -2.5: 3.5, -2.0: 3.7}).high == pytest.approx(10**-2.75)
    assert decide(3.0, {-1.0: 2.5, 0.0: 2.0}).high < 2


def test_a_fall_that_is_lost_again_ends_the_span() -> None:
    """At 1e-1 two thirds of the fall are left: that is no good rate, only an easy first gain."""
    found = decide(6.0, {-4.0: 5.8, -3.0: 3.0, -2.0: 1.0, -1.5: 2.5, -1.0: 2.7, -2.5: 1.2})
    assert 1e-2 <= found.high < 10**-1.5
