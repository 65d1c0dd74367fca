"""What a pass may ask of memory: no more than there is, and no less for long."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from trainings import trained

from bandsearch.engine.engine import Engine
from bandsearch.engine.passes import Part
from bandsearch.engine.room import PATIENCE, Room
from bandsearch.values.band import Band
from bandsearch.values.candidate import Candidate
from bandsearch.values.fidelity import Fidelity

FULL = Candidate.full_depth(4, rank=4, alpha=8, learning_rate=1e-3)
TOP = FULL.model_copy(update={"bands": (Band(start=3, stop=4),)})
MOST = 1000


def failures(room: Room, memory: float, passes: int, numbers: random.Random) -> int:
    found = 0
    for _ in range(passes):
        amount = int(min(numbers.randint(1, MOST), room.most))
        if amount > memory:
            found += 1
            room.lacked(amount, amount // 2)
        else:
            room.fitted(amount)
    return found


@given(st.integers(1, MOST), st.integers(0, 1000))
def test_a_real_limit_is_hardly_ever_hit(memory: int, seed: int) -> None:
    room, numbers = Room(), random.Random(seed)
    first = failures(room, memory, 100 * PATIENCE, numbers)
    assert first <= math.log2(MOST) + math.log2(100) + 2
    assert failures(room, memory, 100 * PATIENCE, numbers) <= 4
    assert room.most >= memory / 2


@given(st.integers(1, MOST), st.integers(0, 1000))
def test_what_lacked_for_a_moment_is_asked_for_again(memory: int, seed: int) -> None:
    room, numbers = Room(), random.Random(seed)
    lost = failures(room, memory, PATIENCE, numbers)
    failures(room, math.inf, PATIENCE * 2 ** (lost + 2), numbers)
    assert room.most >= MOST


def scarce(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, room: Callable[[int], float]
) -> tuple[list[int], list[int]]:
    """Room for so much in the pass of that number, in tokens by layers from the band's first on; the rows of training
    passes that fitted, and of those that did not."""
    usual, lengths = engine._passes.token_losses, engine.dataset.train.lengths.tolist()
    fitted: list[int] = []
    lost: list[int] = []

    def token_losses(split: str, parts: Sequence[Part], **how: bool) -> list[Tensor]:
        rows = [index for part in parts for index in part.indices]
        layers = sum(len(part.indices) * (4 - part.start) for part in parts)
        if split == "train":
            fits = max(lengths[index] for index in rows) * layers <= room(len(fitted) + len(lost))
            (fitted if fits else lost).append(len(rows))
            if not fits:
                raise torch.OutOfMemoryError("full")
        return usual(split, parts, **how)

    monkeypatch.setattr(engine._passes, "token_losses", token_losses)
    return fitted, lost


def test_a_limit_learnt_at_full_depth_does_not_take_bands_apart_that_keep_less(
    load: Callable[[str], Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load("qwen2")
    whole = 8 * 4 * max(engine.dataset.train.lengths.tolist())
    fitted, lost = scarce(engine, monkeypatch, lambda _: 0.8 * whole)
    trained(engine, FULL)
    assert lost
    fitted.clear()
    lost.clear()
    trained(engine, TOP)
    assert set(fitted) == {8}
    assert lost == []


def test_memory_that_somebody_else_had_for_a_moment_is_used_again_and_changes_nothing(
    load: Callable[[str], Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load("qwen2")
    long = Fidelity(steps=50, batch_size=8, seed=3, warmup_steps=2, validation_examples=10)
    expected = trained(engine, FULL, long)
    fitted, lost = scarce(engine, monkeypatch, lambda number: 0.0 if number < 2 else math.inf)
    losses, loss, adapter = trained(engine, FULL, long)
    assert lost == [8, 4]
    assert fitted[0] < 8
    assert set(fitted[-5:]) == {8}
    assert losses == pytest.approx(expected[0], abs=1e-4)
    assert loss == pytest.approx(expected[1], abs=1e-4)
    for name, factor in adapter.items():
        wanted = expected[2][name]
        assert float((factor - wanted).norm()) <= 1e-3 * float(wanted.norm()), name
