"""Passes of a model as it stands: every example once, and no more logits at a time than memory has for them."""

from __future__ import annotations

from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from bandsearch.probe.forward import ROWS, _passes


@given(
    st.lists(st.integers(1, 60).flatmap(lambda length: st.tuples(st.just(length), st.integers(1, length)))),
    st.integers(0, 200),
)
def test_passes_hold_few_rows_and_few_tokens_to_predict(sizes: list[tuple[int, int]], most: int) -> None:
    examples = [SimpleNamespace(input_ids=range(length), learned=learned) for length, learned in sizes]
    found = list(_passes(examples, most))  # type: ignore[arg-type]
    assert sorted(index for some in found for index in some) == list(range(len(sizes)))
    for some in found:
        assert len(some) <= ROWS
        assert len(some) == 1 or sum(sizes[index][1] for index in some) <= most
    lengths = [sizes[index][0] for some in found for index in some]
    assert lengths == sorted(lengths)
