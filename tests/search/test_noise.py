from __future__ import annotations

import random
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandsearch.search.noise import Noise


def drawn(numbers: random.Random, sigmas: list[float], seeds: int) -> list[dict[int, float]]:
    """Equal contenders on shared seeds, each with its own standard deviation."""
    shared = [numbers.gauss(0, 0.05) for _ in range(seeds)]
    return [{seed: s + numbers.gauss(0, sigma) for seed, s in enumerate(shared)} for sigma in sigmas]


def test_two_way_fit_agrees_with_the_balanced_formulas() -> None:
    losses = np.array([[0.30, 0.36, 0.29], [0.25, 0.33, 0.26], [0.40, 0.42, 0.41], [0.31, 0.35, 0.33]])
    noise = Noise.of([dict(enumerate(row)) for row in losses])
    residual = losses - losses.mean(1, keepdims=True) - losses.mean(0, keepdims=True) + losses.mean()
    assert noise.freedom == 3 * 2
    assert noise.sigma == pytest.approx(np.sqrt((residual**2).sum() / 6))
    assert noise.means == pytest.approx(losses.mean(1))
    assert noise.standard_error(1, 3) == pytest.approx(noise.sigma * np.sqrt(2 / 3))


def test_a_seed_that_one_contender_lacks_is_not_held_against_the_others() -> None:
    hard_seed = {0: 0.30, 1: 0.50}
    noise = Noise.of([hard_seed, {seed: loss - 0.1 for seed, loss in hard_seed.items()}, {0: 0.25}])
    assert noise.difference(2, 0) == pytest.approx(-0.05)
    assert noise.difference(1, 0) == pytest.approx(-0.10)


@pytest.mark.parametrize(("contenders", "seeds"), [(3, 2), (7, 2), (5, 4)])
def test_pooled_noise_is_what_the_others_have_whatever_one_does(contenders: int, seeds: int) -> None:
    numbers = random.Random(3)
    equal = [Noise.of(drawn(numbers, [0.02] * contenders, seeds)) for _ in range(300)]
    assert statistics.fmean(noise.sigma**2 for noise in equal) == pytest.approx(0.02**2, rel=0.15)
    # Alike, somebody is set apart in one of twenty.
    apart = sum(noise.freedom < (contenders - 1) * (seeds - 1) for noise in equal)
    assert apart <= 0.1 * len(equal)
    if contenders > 3:
        wild = (contenders - 1) // 2
        mixed = [Noise.of(drawn(numbers, [0.5] * wild + [0.02] * (contenders - wild), seeds)[::-1]) for _ in range(300)]
        assert statistics.median(noise.sigma for noise in mixed) < 0.03
        assert statistics.median(noise.standard_error(-1, 0) for noise in mixed) > 0.1


@given(st.lists(st.lists(st.floats(-1, 1), min_size=3, max_size=3), min_size=2, max_size=6), st.floats(-5, 5))
def test_what_a_seed_does_to_all_changes_no_difference(losses: list[list[float]], shift: float) -> None:
    plain = Noise.of([dict(enumerate(row)) for row in losses])
    moved = Noise.of([{seed: loss + shift * seed for seed, loss in enumerate(row)} for row in losses])
    if plain.freedom == moved.freedom:
        assert moved.difference(0, 1) == pytest.approx(plain.difference(0, 1), abs=1e-9)
        assert moved.standard_error(0, 1) == pytest.approx(plain.standard_error(0, 1), abs=1e-6)
