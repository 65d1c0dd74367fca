"""Candidates that share passes: each trains as if it were alone."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from trainings import NARROW, SHORT, WIDE, Trained, trained

from bandsearch.engine import session as session_module
from bandsearch.engine.conductor import Conductor
from bandsearch.engine.engine import Engine
from bandsearch.engine.failures import DivergedError, OutOfMemoryError
from bandsearch.engine.session import Session
from bandsearch.values.band import Band
from bandsearch.values.candidate import Candidate, Init, Method
from bandsearch.values.fidelity import Fidelity
from bandsearch.values.trial import Point

# Different in every way that a search varies: start, width, rank, targets, rate, scale, initialisation, seed, bands.
PACK: tuple[tuple[Candidate, Fidelity], ...] = (
    (NARROW, SHORT),
    (WIDE, SHORT.model_copy(update={"seed": 5})),
    (
        Candidate(bands=(Band(start=3, stop=4),), rank=6, alpha=6, targets=("all",), learning_rate=1e-2),
        SHORT.model_copy(update={"warmup_steps": 0}),
    ),
    (
        Candidate(
            bands=(Band(start=0, stop=1), Band(start=2, stop=4)),
            rank=4,
            alpha=3,
            targets=("attention",),
            learning_rate=2e-3,
            method=Method.RSLORA,
            init=Init.ORTHOGONAL,
        ),
        SHORT,
    ),
)


def assert_alike(found: Trained, expected: Trained) -> None:
    assert found[0] == pytest.approx(expected[0], abs=1e-5)
    assert found[1] == pytest.approx(expected[1], abs=1e-5)
    assert found[2].keys() == expected[2].keys()
    for name, factor in expected[2].items():
        assert float((found[2][name] - factor).norm()) <= 1e-4 * float(factor.norm()), name


def test_a_pack_trains_each_as_if_it_were_alone(family: str, load: Callable[[str], Engine]) -> None:
    engine = load(family)
    assert engine.levers.packing != 1
    expected = [trained(engine, *each) for each in PACK]
    sessions = [engine.admit(*each) for each in PACK]
    for _ in range(SHORT.steps):
        assert engine.train_together(sessions) == {}
    points = engine.validate_together(sessions)
    for session, wanted in zip(sessions, expected, strict=True):
        point = points[session]
        assert isinstance(point, Point)
        assert_alike((engine.train_losses(session), point.loss, engine.adapter(session)), wanted)


def test_each_of_a_pack_is_clipped_by_its_own_norm(
    load: Callable[[str], Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    clip, norms, right = 0.6, list[float](), Session.clip

    def watched(self: Session) -> torch.Tensor:
        norms.append(float(right(self)))
        return torch.tensor(norms[-1])

    monkeypatch.setattr(session_module, "CLIP", clip)
    monkeypatch.setattr(Session, "clip", watched)
    engine = load("llama")
    expected = [trained(engine, *each) for each in PACK]
    sessions = [engine.admit(*each) for each in PACK]
    norms.clear()
    for _ in range(SHORT.steps):
        assert engine.train_together(sessions) == {}
        # Some are clipped and some are not, or clipping them as one would do the same.
        assert min(norms[-len(PACK) :]) < clip < max(norms[-len(PACK) :])
    for session, wanted in zip(sessions, expected, strict=True):
        assert_alike((engine.train_losses(session), wanted[1], engine.adapter(session)), wanted)


def test_one_that_diverges_ends_alone(engine: Engine) -> None:
    expected = trained(engine, NARROW, SHORT)
    good = engine.admit(NARROW, SHORT)
    bad = engine.admit(NARROW.model_copy(update={"learning_rate": 1e30}), SHORT.model_copy(update={"warmup_steps": 0}))
    sessions, failed = [good, bad], {}
    for _ in range(SHORT.steps):
        failures = engine.train_together(sessions)
        failed |= failures
        sessions = [each for each in sessions if each not in failures]
    outcome = engine.validate_together(sessions)
    assert sessions == [good] or isinstance(outcome[bad], DivergedError)
    assert all(isinstance(failure, DivergedError) for failure in failed.values())
    point = outcome[good]
    assert isinstance(point, Point)
    assert_alike((engine.train_losses(good), point.loss, engine.adapter(good)), expected)


def conducted(engine: Engine, packing: int, wanted: list[tuple[str, int]]) -> tuple[list[Any], list[list[str]]]:
    """Advances all at once; the answers, and who went through the base together."""
    packs: list[list[str]] = []
    train = engine.train_together

    def noted(sessions: list[str]) -> Any:
        packs.append(list(sessions))
        return train(sessions)

    engine.train_together = noted  # type: ignore[method-assign, assignment]

    async def run(work: Callable[..., Any], *args: Any) -> Any:
        await asyncio.sleep(0)
        return work(*args)

    async def everyone() -> list[Any]:
        conductor = Conductor(engine, packing, run)
        return await asyncio.gather(*(conductor.advance(name, steps) for name, steps in wanted), return_exceptions=True)

    try:
        return asyncio.run(everyone()), packs
    finally:
        engine.train_together = train  # type: ignore[method-assign]


def test_those_behind_catch_up_and_then_share_passes(engine: Engine) -> None:
    expected = trained(engine, NARROW, SHORT)
    ahead, behind, third = (engine.admit(NARROW, SHORT) for _ in range(3))
    engine.advance(ahead, 3)
    answers, packs = conducted(engine, 2, [(ahead, 6), (behind, 6), (third, 6)])
    assert [point.steps for point in answers] == [6, 6, 6]
    assert packs[:3] == [[behind, third]] * 3
    assert all(len(pack) <= 2 for pack in packs)
    for name, point in zip((ahead, behind, third), answers, strict=True):
        assert_alike((engine.train_losses(name), point.loss, engine.adapter(name)), expected)


def test_a_goal_reached_makes_room_at_once(engine: Engine) -> None:
    first, second, third = (engine.admit(NARROW, SHORT) for _ in range(3))
    answers, packs = conducted(engine, 2, [(first, 2), (second, 4), (third, 4)])
    assert [point.steps for point in answers] == [2, 4, 4]
    together = sum(len(pack) for pack in packs)
    assert together == 2 + 4 + 4
    assert len(packs) <= 6


def test_a_failure_reaches_only_its_own_caller(engine: Engine) -> None:
    good = engine.admit(NARROW, SHORT)
    bad = engine.admit(
        NARROW.model_copy(update={"learning_rate": 1e38}), Fidelity(steps=30, batch_size=8, seed=0, warmup_steps=0)
    )
    answers, _ = conducted(engine, 4, [(good, 6), (bad, 30)])
    assert isinstance(answers[0], Point)
    assert isinstance(answers[1], DivergedError) or answers[1].loss > 6


def test_one_evicted_while_it_waits_concerns_its_own_caller(engine: Engine) -> None:
    good, gone = engine.admit(NARROW, SHORT), engine.admit(WIDE, SHORT)
    engine.evict(gone)
    answers, _ = conducted(engine, 2, [(good, 6), (gone, 6)])
    assert isinstance(answers[0], Point)
    assert isinstance(answers[1], KeyError)


def test_out_of_memory_takes_passes_apart_and_changes_nothing(
    load: Callable[[str], Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load("qwen2")
    expected = [trained(engine, *each) for each in PACK]
    most_rows = 3
    seen: list[int] = []
    usual = engine._passes.token_losses

    def small(split: str, parts: Any, **how: Any) -> Any:
        rows = sum(len(part.indices) for part in parts)
        seen.append(rows)
        if rows > most_rows:
            raise torch.OutOfMemoryError("full")
        return usual(split, parts, **how)

    monkeypatch.setattr(engine._passes, "token_losses", small)
    sessions = [engine.admit(*each) for each in PACK]
    for _ in range(SHORT.steps):
        assert engine.train_together(sessions) == {}
    points = engine.validate_together(sessions)
    assert max(seen) > most_rows
    monkeypatch.undo()
    for session, wanted in zip(sessions, expected, strict=True):
        point = points[session]
        assert isinstance(point, Point)
        assert_alike((engine.train_losses(session), point.loss, engine.adapter(session)), wanted)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_who_lacks_memory_takes_nobody_along(
    load: Callable[[str], Engine], monkeypatch: pytest.MonkeyPatch, split: str
) -> None:
    """Full depth keeps the most; what is packed with it goes on, and ends where it would have ended alone."""
    engine = load("qwen2")
    expected = [trained(engine, *each) for each in PACK]
    usual = engine._passes.token_losses

    def scarce(of: str, parts: Any, **how: Any) -> Any:
        if of == split and any(part.start == 0 for part in parts):
            raise torch.OutOfMemoryError("full")
        return usual(of, parts, **how)

    monkeypatch.setattr(engine._passes, "token_losses", scarce)
    sessions = [engine.admit(*each) for each in PACK]
    failed = {name for name, (candidate, _) in zip(sessions, PACK, strict=True) if candidate.layers[0] == 0}
    assert 0 < len(failed) < len(sessions)
    lost: dict[str, object] = {}
    for _ in range(SHORT.steps):
        lost |= engine.train_together([name for name in sessions if name not in lost])
    read = engine.validate_together([name for name in sessions if name not in lost])
    lost |= {name: each for name, each in read.items() if not isinstance(each, Point)}
    assert {name: type(error) for name, error in lost.items()} == dict.fromkeys(failed, OutOfMemoryError)
    assert not any(engine.holds(name) for name in failed)
    monkeypatch.undo()
    for session, wanted in zip(sessions, expected, strict=True):
        if session not in failed:
            assert_alike((engine.train_losses(session), read[session].loss, engine.adapter(session)), wanted)


class FailsBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, losses: torch.Tensor) -> torch.Tensor:
        return losses.clone()

    @staticmethod
    def backward(ctx: Any, _: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("full")


def test_a_pass_that_runs_out_of_memory_backward_is_gone_before_the_next(
    load: Callable[[str], Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or else the next finds no more room than it did."""
    engine = load("qwen2")
    made: list[weakref.ref[torch.Tensor]] = []
    usual = engine._passes.token_losses

    def small(split: str, parts: Any, **how: Any) -> Any:
        assert all(each() is None for each in made)
        found = usual(split, parts, **how)
        made.extend(map(weakref.ref, found))
        return [FailsBackward.apply(each) for each in found] if sum(len(part.indices) for part in parts) > 3 else found

    monkeypatch.setattr(engine._passes, "token_losses", small)
    session = engine.admit(*PACK[0])
    for _ in range(3):
        assert engine.train_together([session]) == {}
    assert len(made) > 3
    monkeypatch.undo()
    assert engine.train_losses(session) == pytest.approx(trained(engine, *PACK[0])[0][:3], abs=1e-5)


def test_memory_that_a_long_batch_lacked_is_no_limit_on_the_rows_of_short_ones(
    load: Callable[[str], Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load("qwen2")
    lengths = [len(example.input_ids) for example in engine.dataset.train]
    failed: list[int] = []
    passed: list[int] = []
    usual = engine._passes.token_losses

    def small(split: str, parts: Any, **how: Any) -> Any:
        rows = [index for part in parts for index in part.indices]
        if len(rows) * max(lengths[index] for index in rows) >= 8 * max(lengths):
            failed.append(len(rows))
            raise torch.OutOfMemoryError("full")
        if failed:
            passed.append(len(rows))
        return usual(split, parts, **how)

    monkeypatch.setattr(engine._passes, "token_losses", small)
    session = engine.admit(NARROW, Fidelity(steps=18, batch_size=8, seed=0))
    for _ in range(18):
        assert engine.train_together([session]) == {}
    assert failed == [8]
    # Half of the rows of the batch that failed are four.
    assert max(passed) > 4
