"""Sequences that memory is too small to keep everything of: layers run twice, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from trainings import NARROW, SHORT, WIDE

from bandsearch.engine import stage
from bandsearch.engine.engine import Engine
from bandsearch.engine.failures import OutOfMemoryError
from bandsearch.engine.measure import measure_costs
from bandsearch.engine.passes import Part
from bandsearch.engine.training import part_of
from bandsearch.values.candidate import Candidate

FULL = Candidate.full_depth(4, rank=4, alpha=8, learning_rate=3e-3)


@contextmanager
def memory(engine: Engine, kept: int, recomputed: float = float("inf")) -> Iterator[list[tuple[int, int, bool]]]:
    """Room for so many tokens of a pass, by whether its layers run twice; (rows, tokens, twice) of passes that fit."""
    usual, fitted = engine._passes.token_losses, list[tuple[int, int, bool]]()
    lengths = engine.dataset.train.lengths.tolist()

    def scarce(split: str, parts: Sequence[Part], *, recompute: bool = False) -> list[Tensor]:
        rows = [index for part in parts for index in part.indices]
        tokens = len(rows) * max(lengths[index] for index in rows)
        if split == "train" and tokens > (recomputed if recompute else kept):
            raise torch.OutOfMemoryError("full")
        fitted.append((len(rows), tokens, recompute))
        return usual(split, parts, recompute=recompute)

    engine._passes.token_losses = scarce  # type: ignore[method-assign, assignment]
    try:
        yield fitted
    finally:
        engine._passes.token_losses = usual  # type: ignore[method-assign]


@pytest.mark.parametrize("candidate", [NARROW, FULL])
def test_a_row_that_does_not_fit_is_trained_to_the_same_numbers(
    family: str, candidate: Candidate, load: Callable[[str], Engine]
) -> None:
    engine = load(family)
    plain = engine.admit(candidate, SHORT)
    expected = engine.advance(plain, SHORT.steps)
    longest = max(engine.dataset.train.lengths.tolist())
    with memory(engine, kept=longest - 6) as fitted:
        session = engine.admit(candidate, SHORT)
        point = engine.advance(session, SHORT.steps)
    assert {twice for _, _, twice in fitted} == {True, False}
    # No more than has to: every pass that is short enough keeps what it makes.
    assert all(rows == 1 and tokens > longest - 6 for rows, tokens, twice in fitted if twice)
    assert engine.train_losses(session) == pytest.approx(engine.train_losses(plain), abs=1e-5)
    assert point.loss == pytest.approx(expected.loss, abs=1e-5)
    wanted = engine.adapter(plain)
    for name, factor in engine.adapter(session).items():
        # One row at a time sums are rounded in another order.
        assert float((factor - wanted[name]).norm()) <= 2e-4 * float(wanted[name].norm()), name


def test_layers_of_a_pack_run_twice_to_the_same_gradients(family: str, load: Callable[[str], Engine]) -> None:
    engine = load(family)
    sessions = [engine._sessions[engine.admit(each, SHORT)] for each in (NARROW, WIDE, FULL)]

    def gradients(*, recompute: bool) -> list[Tensor]:
        losses = engine._passes.token_losses(
            "train", [part_of(each, range(4)) for each in sessions], recompute=recompute
        )
        return list(
            torch.autograd.grad(torch.cat(losses).sum(), [f for each in sessions for f in each.factors.values()])
        )

    for twice, once in zip(gradients(recompute=True), gradients(recompute=False), strict=True):
        assert torch.equal(twice, once)


class Held(TorchDispatchMode):
    """The most bytes that tensors made inside it held at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.most, self._alive = 0, dict[StorageWeakRef, int]()

    def __torch_dispatch__(self, work: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = work(*args, **(kwargs or {}))
        known = {
            StorageWeakRef(each.untyped_storage()) for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)
        }
        for each in tree_leaves(found):
            if isinstance(each, Tensor) and (made := StorageWeakRef(each.untyped_storage())) not in known:
                self._alive[made] = each.untyped_storage().nbytes()
        self._alive = {made: size for made, size in self._alive.items() if not made.expired()}
        self.most = max(self.most, sum(self._alive.values()))
        return found


def test_less_is_held_at_a_time(engine: Engine) -> None:
    session = engine._sessions[engine.admit(FULL, SHORT)]
    longest = max(range(len(engine.dataset.train)), key=engine.dataset.train.lengths.tolist().__getitem__)

    def most(*, recompute: bool) -> int:
        with Held() as held:
            (losses,) = engine._passes.token_losses("train", [part_of(session, [longest] * 8)], recompute=recompute)
            losses.sum().backward()
        return held.most

    most(recompute=False)
    assert most(recompute=True) < 0.6 * most(recompute=False)


def test_what_does_not_fit_even_so_ends_with_a_remedy(load: Callable[[str], Engine]) -> None:
    engine = load("qwen2")
    session = engine.admit(FULL, SHORT)
    remedy = r"of \d+ tokens, does not fit .* --max-length.*--dtype nf4"
    with memory(engine, kept=0, recomputed=10), pytest.raises(OutOfMemoryError, match=remedy):
        engine.advance(session, 1)


def test_who_cannot_train_the_longest_example_hears_it_before_anything_is_timed(
    load: Callable[[str], Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load("qwen2")
    longest, trained = max(engine.dataset.train.lengths.tolist()), list[object]()
    monkeypatch.setattr(engine, "train_together", trained.append)
    too_much = pytest.raises(OutOfMemoryError, match=f"of {longest} tokens")
    with memory(engine, kept=longest - 1, recomputed=longest - 1), too_much:
        measure_costs(engine, 1, 4)
    assert trained == []
    assert engine._sessions == {}


def test_the_longest_example_is_tried_at_full_depth_and_nothing_is_trained(engine: Engine) -> None:
    session = engine.admit(FULL, SHORT)
    before = engine.adapter(session)
    with memory(engine, kept=10**6) as fitted:
        engine.try_longest(session)
    assert fitted == [(1, max(engine.dataset.train.lengths.tolist()), False)]
    assert all(torch.equal(factor, before[name]) for name, factor in engine.adapter(session).items())
    assert all(factor.grad is None for factor in engine._sessions[session].factors.values())
    assert engine.progress(session)[0] == 0


def test_layers_that_do_not_bear_to_run_twice_are_not_run_twice(
    load: Callable[[str], Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found when the engine starts; a sequence that is too long ends its candidate, and nobody else's."""
    usual = stage.recomputed

    def wrong(layer: Callable[..., Any], again: Any) -> Callable[..., Any]:
        twice = usual(layer, again)

        def run(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            return twice(hidden * 1.01, *args, **kwargs)

        return run

    monkeypatch.setattr(stage, "recomputed", wrong)
    engine = load("qwen2")
    assert [note for note in engine.notes if "recomputing layers does not compute" in note and "is off" in note]
    assert engine.levers.prefix_cache
    longest = max(engine.dataset.train.lengths.tolist())
    with memory(engine, kept=longest - 6) as fitted, pytest.raises(OutOfMemoryError, match=f"of {longest} tokens"):
        engine.try_longest(engine.admit(FULL, SHORT))
    assert not any(twice for _, _, twice in fitted)
