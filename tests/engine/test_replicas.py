"""Several engines that train one candidate together train it as one engine does."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import ray
import torch
from trainings import NARROW, SHORT

from bandsearch.engine import engine as module_of_engine
from bandsearch.engine import replicas
from bandsearch.engine.engine import Engine
from bandsearch.engine.failures import DivergedError, LostEngineError, OutOfMemoryError
from bandsearch.engine.pool import EnginePool
from bandsearch.engine.setup import EngineSetup
from bandsearch.engine.team import Team, form_teams


@pytest.fixture(scope="module")
def pool(setup_of: Callable[[str], EngineSetup]) -> Iterator[EnginePool]:
    pool = EnginePool.start([setup_of("qwen2")] * 3)
    yield pool
    pool.stop()


def adapter_of(pool: EnginePool, path: Path) -> dict[str, torch.Tensor]:
    session = pool.get(pool.submit(0, "restore", path))
    found: dict[str, torch.Tensor] = pool.get(pool.submit(0, "adapter", session))
    pool.get(pool.submit(0, "evict", session))
    return found


@pytest.mark.parametrize("size", [2, 3])
def test_a_team_trains_as_one_engine_does(
    pool: EnginePool, load: Callable[[str], Engine], tmp_path: Path, size: int
) -> None:
    engine = load("qwen2")
    session = engine.admit(NARROW, SHORT)
    alone = engine.advance(session, SHORT.steps)
    (team,) = form_teams(pool, 1, size)
    assert team.size == size
    team.begin(NARROW, SHORT)
    together = team.advance(SHORT.steps, None)
    team.checkpoint(tmp_path / "adapter")
    team.evict()
    assert together.steps == alone.steps
    assert together.loss == pytest.approx(alone.loss, abs=1e-5)
    adapter = adapter_of(pool, tmp_path / "adapter")
    for name, factor in engine.adapter(session).items():
        assert float((adapter[name] - factor).norm()) <= 1e-4 * float(factor.norm()), name


def test_every_engine_of_a_team_has_the_same_factors(pool: EnginePool) -> None:
    (team,) = form_teams(pool, 1, 3)
    team.begin(NARROW, SHORT)
    team.advance(4, None)
    first, *others = team._ask("adapter", ((session,) for session in team._sessions))
    team.evict()
    for other in others:
        assert all(torch.equal(other[name], factor) for name, factor in first.items())


def test_a_training_goes_on_from_its_checkpoint_to_the_last_bit(pool: EnginePool, tmp_path: Path) -> None:
    (team,) = form_teams(pool, 1, 2)
    team.begin(NARROW, SHORT)
    team.advance(3, None)
    team.checkpoint(tmp_path / "half")
    team.advance(SHORT.steps, None)
    team.checkpoint(tmp_path / "whole")
    team.restore(tmp_path / "half")
    team.advance(SHORT.steps, None)
    team.checkpoint(tmp_path / "again")
    team.evict()
    whole, again = (adapter_of(pool, tmp_path / name) for name in ("whole", "again"))
    assert all(torch.equal(again[name], factor) for name, factor in whole.items())


def test_whoever_is_late_ends_it_for_all(pool: EnginePool) -> None:
    (team,) = form_teams(pool, 1, 2)
    team.begin(NARROW, SHORT)
    points = team._ask("advance", ((s, 6, deadline) for s, deadline in zip(team._sessions, (0.0, 1e6), strict=True)))
    team.evict()
    assert [point.steps for point in points] == [1, 1]


def test_a_team_that_is_halted_stops_after_the_same_step_everywhere(pool: EnginePool) -> None:
    (team,) = form_teams(pool, 1, 2)
    long = SHORT.model_copy(update={"steps": 10_000})
    team.halt()
    team.begin(NARROW, long)
    assert team.advance(2, None).steps == 2
    with ThreadPoolExecutor(1) as threads:
        advancing = threads.submit(team._ask, "advance", [(session, 10_000) for session in team._sessions])
        while wait([advancing], 0.1).not_done:
            team.halt()
    points = advancing.result()
    team.evict()
    assert points[0].steps == points[1].steps < 10_000


def test_what_diverges_diverges_for_all_and_they_can_train_on(pool: EnginePool) -> None:
    (team,) = form_teams(pool, 1, 2)
    team.begin(NARROW.model_copy(update={"learning_rate": 1e30}), SHORT)
    with pytest.raises(DivergedError):
        team.advance(SHORT.steps, None)
    team.begin(NARROW, SHORT)
    assert team.advance(2, None).steps == 2
    team.evict()


def in_place_once(at_work: Any, name: str, stand_in: Callable[..., Any]) -> None:
    """The next call of this method is one of `stand_in`, and no other."""
    usual = getattr(at_work, name)

    def standing_in(*given: Any) -> Any:
        setattr(at_work, name, usual)
        return stand_in(*given)

    setattr(at_work, name, standing_in)


def fail_once(engine: Engine, method: str) -> None:
    """The next step or validation of this engine fails, and no other."""

    def failing(*_: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access")

    at_work, name = (engine._trainer, "step") if method == "step" else (engine, "_validation_losses")
    in_place_once(at_work, name, failing)


def number_of(engine: Engine) -> int:
    return os.getpid()


def test_engines_that_part_are_in_no_group_and_may_meet_again(pool: EnginePool) -> None:
    (team,) = form_teams(pool, 1, 3)
    team.part()
    assert [pool.apply(place, lambda _: torch.distributed.is_initialized()) for place in range(3)] == [False] * 3
    (again,) = form_teams(pool, 1, 3)
    assert again.size == 3
    again.part()


def test_where_one_fails_at_meeting_the_others_do_not_wait_for_it(pool: EnginePool) -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    pool.apply(1, fail_once, "step")
    assert [team.size for team in form_teams(pool, 1, 3)] == [1]
    assert len(ray.get([pool.apply_async(index, number_of) for index in range(3)], timeout=60)) == 3
    assert [pool.apply(place, lambda _: torch.distributed.is_initialized()) for place in range(3)] == [False] * 3
    assert [team.size for team in form_teams(pool, 1, 3)] == [3]


def deal_wrongly_once(engine: Engine) -> None:
    """In the next step that it shares this engine takes the first one's rows."""

    def wrong(session: str) -> None:
        engine._replicas._rank = 0
        engine.replicate(session)

    in_place_once(engine, "replicate", wrong)


def test_engines_that_together_do_not_train_as_one_does_train_apart(pool: EnginePool, tmp_path: Path) -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    pool.apply(1, deal_wrongly_once)
    assert pool.get_all([pool.submit(rank, "join", tmp_path / "store", rank, 2) for rank in range(2)]) == [False, False]
    pool.apply(1, deal_wrongly_once)
    assert [team.size for team in form_teams(pool, 1, 2)] == [1]
    assert [team.size for team in form_teams(pool, 1, 2)] == [2]


def meet_nobody(engine: Engine) -> int:
    replicas.leave()
    with TemporaryDirectory() as folder, suppress(RuntimeError):
        store = torch.distributed.FileStore(f"{folder}/store", 2)
        torch.distributed.init_process_group(
            "gloo", store=store, rank=0, world_size=2, timeout=timedelta(milliseconds=100)
        )
    return engine.threads


def test_who_failed_to_meet_before_is_found_by_the_others(pool: EnginePool) -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    pool.apply(0, meet_nobody)
    (team,) = form_teams(pool, 1, 3)
    assert team.size == 3
    team.part()


def test_nobody_waits_for_long_where_somebody_does_not_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas, "MEETING", timedelta(milliseconds=50))
    with pytest.raises(RuntimeError):
        replicas.Replicas(tmp_path / "store", 0, 2, torch.device("cpu"))


@pytest.mark.parametrize("method", ["step", "validation"])
def test_where_one_fails_in_training_the_others_do_not_wait_for_it(pool: EnginePool, method: str) -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    (team,) = form_teams(pool, 1, 3)
    team.begin(NARROW, SHORT)
    pool.apply(2, fail_once, method)
    with pytest.raises((LostEngineError, ray.exceptions.RayTaskError)):
        team.advance(SHORT.steps, None)
    assert len(ray.get([pool.apply_async(index, number_of) for index in range(3)], timeout=60)) == 3
    team.evict()


def lack_memory_once(engine: Engine, method: str) -> None:
    """The next step or validation of this engine finds no memory for a single example."""
    error = OutOfMemoryError("One example does not fit into memory.")

    def lost(sessions: Any, *_: Any) -> Any:
        return {session.name: error for session in sessions}

    def failing(*_: Any) -> Any:
        raise error

    if method == "step":
        in_place_once(engine._trainer, "_backward", lost)
    else:
        in_place_once(module_of_engine, "split_losses", failing)


@pytest.mark.parametrize("method", ["step", "validation"])
def test_where_one_lacks_memory_nobody_takes_it_for_a_rate_that_is_too_high(pool: EnginePool, method: str) -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    (team,) = form_teams(pool, 1, 2)
    team.begin(NARROW, SHORT)
    pool.apply(1, lack_memory_once, method)
    for advancing in [pool.submit(place, "advance", session, 2) for place, session in enumerate(team._sessions)]:
        with pytest.raises(OutOfMemoryError):
            pool.get(advancing)
    team.begin(NARROW, SHORT)
    assert team.advance(2, None).steps == 2
    team.evict()


def test_without_engines_enough_everyone_trains_alone(pool: EnginePool) -> None:
    assert [team.size for team in form_teams(pool, 2, 2)] == [1, 1]
    assert [team.size for team in form_teams(pool, 4, 1)] == [1, 1, 1, 1]


def test_a_team_of_one_needs_no_others(pool: EnginePool) -> None:
    team = Team(pool, [1])
    team.begin(NARROW, SHORT)
    assert team.advance(2, None).steps == 2
    team.evict()
