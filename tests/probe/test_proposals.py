"""Layer scores and the bands proposed from them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandsearch.probe.proposals import MOST, mass, propose, widths, windows
from bandsearch.probe.scores import layer_scores
from bandsearch.values.band import Band

signal = st.integers(2, 128).flatmap(lambda count: st.lists(st.floats(0, 1e6), min_size=count, max_size=count))


def kept_for(scores: tuple[float, ...]) -> dict[Band, float]:
    bands = [band for width in widths(len(scores)) for band in windows(len(scores), width)]
    return {band: min(1.0, 1.2 * mass(scores, band)) for band in bands}


@given(signal, st.booleans())
@settings(max_examples=150, deadline=None)
def test_proposals_are_few_distinct_and_inside_the_model(values: list[float], measured: bool) -> None:
    scores = layer_scores([values])
    proposals = propose(scores, kept_for(scores) if measured else {})
    bands = [proposal.band for proposal in proposals]
    assert 1 <= len(bands) <= MOST
    assert len(set(bands)) == len(bands)
    assert all(0 <= band.start < band.stop <= len(values) for band in bands)
    assert all(proposal.reason.endswith(".") for proposal in proposals)
    assert all(proposal.score == pytest.approx(mass(scores, proposal.band)) for proposal in proposals)
    if len(values) >= 8:
        assert len({band.width for band in bands}) >= 3


@given(signal)
@settings(max_examples=100, deadline=None)
def test_windows_cover_the_whole_depth(values: list[float]) -> None:
    for width in widths(len(values)):
        bands = windows(len(values), width)
        assert bands[0].start == 0
        assert bands[-1].stop == len(values)
        assert {band.width for band in bands} == {width}
        assert len(set(bands)) == len(bands) <= 8


def test_a_single_layer_can_be_probed() -> None:
    assert [proposal.band for proposal in propose((1.0,), {})] == [Band(start=0, stop=1)]


@given(signal)
@settings(max_examples=100, deadline=None)
def test_scores_sum_to_one_and_keep_the_order_of_a_lone_signal(values: list[float]) -> None:
    scores = layer_scores([values])
    assert sum(scores) == pytest.approx(1)
    assert all(
        (a < b) == (x < y) for a, x in zip(scores, values, strict=True) for b, y in zip(scores, values, strict=True)
    )


def test_one_huge_number_counts_no_more_than_its_rank() -> None:
    assert layer_scores([[1e9, 2.0, 1.0]]) == layer_scores([[3.0, 2.0, 1.0]])


def test_signals_count_alike_and_ties_share_their_ranks() -> None:
    assert layer_scores([[1.0, 2.0], [2.0, 1.0]]) == (0.5, 0.5)
    assert layer_scores([[5.0, 5.0, 5.0, 5.0]]) == (0.25,) * 4


@pytest.mark.parametrize("start", [0, 3, 9])
def test_a_planted_block_is_found(start: int) -> None:
    planted = Band(start=start, stop=start + 3)
    scores = tuple((0.9 / 3 if layer in planted.layers else 0.1 / 9) for layer in range(12))
    proposals = {proposal.band: proposal.reason for proposal in propose(scores, {})}
    assert any(set(band.layers) <= set(planted.layers) for band in proposals if band.width <= 3)
    for width in widths(12):
        densest = [band for band, reason in proposals.items() if band.width == width and "olds" in reason]
        assert any(set(planted.layers[:width]) & set(band.layers) for band in densest)


def test_what_was_measured_comes_first_and_says_so() -> None:
    scores = layer_scores([range(10)])
    kept = {band: 0.9 if band.start == 1 else 0.2 for band in windows(10, 6)}
    first = propose(scores, kept)[0]
    assert first.band == Band(start=1, stop=7)
    assert "90%" in first.reason
    assert "20%" in first.reason
