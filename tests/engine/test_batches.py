"""The order of examples, from the seed alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from bandsearch.engine.batches import examples_at, tight_batches

LENGTHS = st.lists(st.integers(1, 500), min_size=1, max_size=120).map(tuple)
SIZES, SEEDS = st.integers(1, 9), st.integers(0, 99)


@settings(deadline=None)
@given(lengths=LENGTHS, size=SIZES, seed=SEEDS, epochs=st.integers(1, 3))
def test_every_example_is_seen_equally_often(lengths: tuple[int, ...], size: int, seed: int, epochs: int) -> None:
    """Up to what a window at the end has seen of the next epoch."""
    steps = epochs * len(lengths) // size
    seen = Counter(index for step in range(steps) for index in examples_at(step, lengths, size, seed))
    window = max(1, min(16, len(lengths) // (4 * size)))
    whole = steps // window * window
    counts = Counter(index for step in range(whole) for index in examples_at(step, lengths, size, seed))
    assert sum(seen.values()) == steps * size
    assert not counts or max(counts.values()) - min(counts[index] for index in range(len(lengths))) <= 1


@settings(deadline=None)
@given(lengths=LENGTHS, size=SIZES, seed=SEEDS, step=st.integers(0, 200))
def test_a_step_depends_on_nothing_but_its_arguments(lengths: tuple[int, ...], size: int, seed: int, step: int) -> None:
    first = examples_at(step, lengths, size, seed)
    examples_at(step + 1, lengths, size, seed + 1)
    assert examples_at(step, lengths, size, seed) == first
    assert len(first) == size
    assert all(0 <= index < len(lengths) for index in first)


def test_grouping_pads_little_and_still_mixes() -> None:
    lengths = tuple(10 + (index * 7919) % 300 for index in range(2000))

    def share_of_real_tokens(window: int) -> float:
        batches = [[lengths[i] for i in examples_at(step, lengths, 16, 3, window)] for step in range(125)]
        return sum(map(sum, batches)) / sum(16 * max(batch) for batch in batches)

    assert share_of_real_tokens(16) > 0.9 > 0.6 > share_of_real_tokens(1)
    first = [max(lengths[i] for i in examples_at(step, lengths, 16, 3)) for step in range(16)]
    assert first != sorted(first)
    assert examples_at(0, lengths, 16, 3) != examples_at(0, lengths, 16, 4)


def _cuts(lengths: list[int], most: int) -> Iterator[list[list[int]]]:
    """Every way to cut a list into runs of at most `most`."""
    if not lengths:
        yield []
    for first in range(1, min(most, len(lengths)) + 1):
        for rest in _cuts(lengths[first:], most):
            yield [lengths[:first], *rest]


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=9), price=st.integers(0, 50), most=st.integers(1, 9))
def test_batches_to_read_pad_as_little_as_any(lengths: list[int], price: int, most: int) -> None:
    batches = tight_batches(lengths, price, most)
    assert sorted(place for batch in batches for place in batch) == list(range(len(lengths)))
    assert max(map(len, batches)) <= most

    def cost(cut: list[list[int]]) -> int:
        return sum(len(run) * max(run) + price for run in cut)

    found = [[lengths[place] for place in batch] for batch in batches]
    assert cost(found) == min(cost(cut) for cut in _cuts(sorted(lengths), most))


def test_one_long_example_does_not_pad_the_others() -> None:
    lengths = [20] * 30 + [200]
    batches = tight_batches(lengths, 64, 32)
    assert batches == [list(range(30)), [30]]
