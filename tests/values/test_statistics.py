"""Intervals of paired differences, against SciPy's and against what is known to be true."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from bandsearch.values.statistics import FEW, paired_bootstrap, paired_proportions

SIZES = st.lists(st.tuples(st.floats(-5, 5), st.integers(1, 4)), min_size=2, max_size=50)


def test_it_is_the_percentile_bootstrap() -> None:
    values = np.random.default_rng(1).gamma(2.0, size=80) - 1.7
    found = paired_bootstrap(list(values))
    reference = stats.bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(2))
    low, high = reference.confidence_interval
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.02)


def test_of_few_it_is_students() -> None:
    values = [0.3, -0.1, 0.25, 0.4, 0.1]
    low, high = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    found = paired_bootstrap(values)
    assert (found.low, found.high) == pytest.approx((low, high))


@given(SIZES)
def test_a_group_counts_as_one_however_many_are_in_it(sizes: list[tuple[float, int]]) -> None:
    """Several equal rows of one question say what one row says that weighs as much."""
    rows = [(value, count, place) for place, (value, count) in enumerate(sizes) for _ in range(count)]
    values, _, groups = zip(*rows, strict=True)
    weights = [count for _, count in sizes]
    spread = paired_bootstrap(values, groups=groups)
    weighed = paired_bootstrap([value for value, _ in sizes], weights=weights)
    assert (spread.mean, spread.low, spread.high) == pytest.approx((weighed.mean, weighed.low, weighed.high), abs=1e-9)
    assert spread.mean == pytest.approx(np.average([value for value, _ in sizes], weights=weights), abs=1e-9)


@pytest.mark.parametrize("questions", [FEW - 10, FEW + 30])
def test_answers_to_one_question_do_not_make_a_proof(questions: int) -> None:
    dice = np.random.default_rng(5)
    groups = np.repeat(np.arange(questions), 8)
    by_row = by_question = 0
    for _ in range(200):
        values = dice.normal(size=questions)[groups] + 0.3 * dice.normal(size=groups.size)
        by_row += paired_bootstrap(list(values), resamples=500).excludes_zero
        by_question += paired_bootstrap(list(values), groups=list(groups), resamples=500).excludes_zero
    assert by_question <= 20  # 5 % of 200, and what chance adds in one case of a hundred
    assert by_row > 60


@given(st.integers(0, 12), st.integers(0, 12), st.integers(0, 300))
def test_exact_match_differs_only_where_the_exact_test_says_so(up: int, down: int, equal: int) -> None:
    differences = [1.0] * up + [-1.0] * down + [0.0] * equal
    if not differences:
        return
    found = paired_proportions(differences)
    assert found.low <= found.mean <= found.high
    if found.excludes_zero:
        assert stats.binomtest(up, up + down).pvalue < 0.05


@pytest.mark.parametrize(("answers", "differs"), [(4, False), (5, False), (6, True)])
def test_four_better_answers_of_many_are_no_proof(answers: int, differs: bool) -> None:
    assert paired_proportions([1.0] * answers + [0.0] * 250).excludes_zero is differs


def test_better_answers_to_one_question_are_no_proof() -> None:
    differences = [1.0] * 8 + [0.0] * 250
    assert paired_proportions(differences).excludes_zero
    assert not paired_proportions(differences, groups=[0] * 8 + list(range(1, 251))).excludes_zero


def test_one_difference_shows_no_sign_and_none_is_refused() -> None:
    found = paired_bootstrap([0.25, 0.25], groups=["one", "one"])
    assert (found.low, found.high) == (-0.25, 0.25)
    with pytest.raises(ValueError, match="at least one"):
        paired_bootstrap([])
