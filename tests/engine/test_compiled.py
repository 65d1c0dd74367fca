"""Parts of the decoder as torch.compile fuses them: they compute the same, and are compiled at the start alone."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from trainings import NARROW, SHORT, WIDE

from bandsearch.engine import compiled
from bandsearch.engine.engine import Engine
from bandsearch.engine.training import part_of
from bandsearch.values.band import Band
from bandsearch.values.candidate import Candidate
from bandsearch.values.levers import Levers

COMPILED = Levers.none().model_copy(update={"compile": True})
needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None, reason="torch.compile needs a C++ compiler"
)


def _again(engine: Engine, levers: Levers) -> Engine:
    engine.close()
    return Engine(engine.model, engine.layout, engine.tokenizer, engine.dataset, levers=levers)


def _trained(engine: Engine, *, together: bool) -> tuple[list[float], Tensor]:
    """Losses, and all factors in one."""
    sessions = [engine.admit(each, SHORT) for each in (NARROW, WIDE)]
    for _ in range(SHORT.steps):
        for some in [sessions] if together else [[each] for each in sessions]:
            assert engine.train_together(some) == {}
    losses = [loss for each in sessions for loss in engine.train_losses(each)]
    return losses, torch.cat([tensor.flatten() for each in sessions for tensor in engine.adapter(each).values()])


@contextmanager
def _counted(codes: set[CodeType]) -> Iterator[Counter[CodeType]]:
    """Calls of Python functions as they are written; one that was compiled has another code."""
    calls: Counter[CodeType] = Counter()

    def seen(frame: Any, event: str, _: Any) -> None:
        if event == "call" and frame.f_code in codes:
            calls[frame.f_code] += 1

    before = sys.getprofile()
    sys.setprofile(seen)
    try:
        yield calls
    finally:
        sys.setprofile(before)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "parts"),
    # Per layer: norms, the gated product, attention around its rotary embedding; one norm more behind the last.
    [("llama", 4 * 4 + 1), ("qwen3", 4 * 6 + 1), ("gemma2", 4 * 6 + 1), ("gpt2", 4)],
)
def test_it_computes_what_the_plain_loop_does_and_compiles_nothing_later(
    load: Callable[[str], Engine], family: str, parts: int
) -> None:
    plain = _again(load(family), Levers.none())
    expected = [_trained(plain, together=each) for each in (False, True)]
    codes = {part.function.__code__ for part in compiled._parts(plain.model.base_model)}
    with _counted(codes) as calls:
        _trained(plain, together=True)
    assert set(calls) == codes - {compiled._gate.__code__}
    engine = _again(plain, COMPILED)
    assert engine.notes == ()
    assert engine.levers == COMPILED
    assert engine._passes.compiled == parts
    graphs = counters["stats"]["unique_graphs"]
    for together, (losses, factors) in zip((False, True), expected, strict=True):
        with _counted(codes) as calls:
            found, ours = _trained(engine, together=together)
        assert not calls
        assert found == pytest.approx(losses, abs=1e-5)
        assert float((ours - factors).norm()) < 1e-4 * float(factors.norm())
    _other_candidates(engine)
    assert counters["stats"]["unique_graphs"] == graphs
    engine.close()
    assert not [name for name, each in engine.model.named_modules() if "forward" in vars(each)]


def _other_candidates(engine: Engine) -> None:
    """Other bands, ranks, targets, lengths and numbers of rows, with gradients and without, kept and recomputed."""
    passes, last = engine._passes, engine.layout.layer_count
    order = sorted(range(len(engine.dataset.train)), key=lambda index: engine.dataset.train.lengths[index])
    for start, rank, target, rows in ((0, 2, "mlp", 1), (2, 3, "all", 5), (last - 1, 1, "attention", 7)):
        band = Band(start=start, stop=last)
        candidate = Candidate(bands=(band,), rank=rank, alpha=rank, targets=(target,), learning_rate=1e-3)
        session = engine._sessions[engine.admit(candidate, SHORT)]
        for indices in (order[:rows], order[-rows:]):
            parts = [part_of(session, indices)]
            with torch.no_grad():
                expected = passes.token_losses("train", parts)[0]
            factors = list(session.factors.values())
            gradients = []
            for recompute in (False, True):
                losses = passes.token_losses("train", parts, recompute=recompute)[0]
                assert torch.allclose(losses, expected, atol=1e-5)
                gradients.append(torch.autograd.grad(losses.sum(), factors))
            assert all(torch.allclose(*pair, atol=1e-5) for pair in zip(*gradients, strict=True))


@needs_compiler
def test_a_part_that_computes_something_else_is_left_as_it_was(
    load: Callable[[str], Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Odd(nn.Module):
        """Not row by row, so that flattened rows are another thing."""

        def forward(self, x: Tensor) -> Tensor:
            return x - x.mean(0)

    engine = load("gpt2")
    plain = _again(engine, Levers.none())
    for layer in plain._passes._decoder.layers:
        layer.mlp.act = Odd()
    expected = _trained(plain, together=False)[0]
    engine = _again(plain, COMPILED)
    assert [note.split()[:2] for note in engine.notes] == [["compile", "finds"]]
    assert _trained(engine, together=False)[0] == expected


def test_without_a_compiler_it_is_off_and_says_what_is_missing(
    load: Callable[[str], Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(function: Callable[..., Any], **_: Any) -> Callable[..., Any]:
        def called(*_: Any) -> None:
            raise RuntimeError("No working C++ compiler found\nin any of these places")

        return called

    monkeypatch.setattr(compiled.torch, "compile", missing)
    engine = _again(load("llama"), Levers(compile=True))
    assert engine.notes == (
        "compile fails (RuntimeError: No working C++ compiler found) and is off. "
        "It needs a C++ compiler and Python's headers: install g++ and python3-dev.",
    )
    assert not engine.levers.compile
    assert engine.levers.prefix_cache
    assert engine._passes.compiled == 0


def test_where_every_part_is_a_kernel_already_nothing_is_compiled(load: Callable[[str], Engine]) -> None:
    engine = _again(load("opt"), Levers(compile=True))
    assert engine.notes == ("compile finds nothing to fuse in this opt model and is off",)
    assert not engine.levers.compile


def test_it_is_off_unless_asked_for(load: Callable[[str], Engine]) -> None:
    engine = load("llama")
    assert not engine.levers.compile
    assert engine._passes.compiled == 0
