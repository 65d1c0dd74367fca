"""The search through Ray Tune itself: processes, deadlines, failures, silence."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import surface
from surface import LAYOUT, MemoryRecords, PlantedPool, Surface, plan, profile
from tune_loop import run_in_process

from bandsearch.engine.failures import LostEngineError
from bandsearch.search import search
from bandsearch.search.clock import MARGIN
from bandsearch.values.errors import RunDirectoryError
from bandsearch.values.progress import Update
from bandsearch.values.space import BandSpace, RateSpace, SearchSpace
from bandsearch.values.trial import TrialResult, TrialState


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    ray.shutdown()
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=100 * 2**20,
    )
    # The workers cannot import a module of the tests.
    ray.cloudpickle.register_pickle_by_value(surface)
    yield
    ray.shutdown()


def searched(folder: Path, pool: PlantedPool, records: Any = None, **changes: Any) -> list[TrialResult]:
    arguments: dict[str, Any] = {
        "space": SearchSpace(name="planted"),
        "layout": LAYOUT,
        "profile": profile(),
        "plan": plan(trials=8),
        "seed": 0,
        "records": records or MemoryRecords(),
        "study_path": folder / "study.db",
        "scratch": folder,
        "wall_left": lambda: float("inf"),
    }
    return search.run_search(pool, **(arguments | changes))


def test_ray_carries_out_exactly_what_the_campaign_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ray").mkdir(), (tmp_path / "plain").mkdir()
    updates: list[Update] = []
    through_ray = searched(tmp_path / "ray", PlantedPool(Surface(diverges_above=2e-3)), listen=updates.append)
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")
    assert [update.message.partition(" ")[0] for update in updates if update.message] == [f"#{n}" for n in range(8)]
    assert updates[-1].done == 1.0
    assert updates[-1].failed == sum(result.state is TrialState.DIVERGED for result in through_ray) > 0
    monkeypatch.setattr(search, "_run_tune", run_in_process)
    assert searched(tmp_path / "plain", PlantedPool(Surface(diverges_above=2e-3))) == through_ray


def test_a_deadline_holds_with_two_engines_at_work(tmp_path: Path) -> None:
    """The clock goes by what was trained: two seconds a step, on two engines."""
    records = MemoryRecords()

    def wall_left() -> float:
        return 600.0 - sum(result.steps for result in records.results())

    planned = plan(expected=20, seconds_per_step=2.0)
    results = searched(tmp_path, PlantedPool(Surface(), size=2), records, plan=planned, wall_left=wall_left)
    assert sorted(records.results(), key=lambda result: result.number) == results
    assert [result.number for result in results] == list(range(len(results)))
    # Nothing was begun for which there was no time, and nothing left out for which there was.
    first, last = planned.rungs[0], planned.rungs[-1]
    assert -2 * last < wall_left() < 2.0 * first * MARGIN + search.TUNE_END_SECONDS


def test_without_time_nothing_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even Ray Tune, which would take seconds of what there is."""
    monkeypatch.setattr(search, "_run_tune", lambda *_: pytest.fail("there is no time"))
    assert searched(tmp_path, PlantedPool(Surface()), plan=plan(seconds_per_step=1.0), wall_left=lambda: 20.0) == []


def test_a_space_with_nothing_new_left_ends_the_search_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "_run_tune", run_in_process)
    few = SearchSpace(
        name="few",
        ranks=(16,),
        targets=("all",),
        bands=BandSpace(split=False, width=(1.0, 1.0)),
        learning_rate=RateSpace(low=1e-3, high=1e-3),
    )
    updates: list[Update] = []
    results = searched(
        tmp_path, PlantedPool(Surface(), size=2), plan=plan(expected=20), space=few, listen=updates.append
    )
    assert [result.proposed_by for result in results] == ["baseline"] * 4
    assert "nothing left" in updates[-1].message


class FullDisk(MemoryRecords):
    def append(self, result: TrialResult) -> None:
        raise RunDirectoryError("The disk that holds it is full.", "Free some space.")


def test_a_disk_that_fills_up_is_a_sentence_not_a_swallowed_trace(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RunDirectoryError, match="is full"):
        searched(tmp_path, PlantedPool(Surface()), FullDisk())
    assert "Traceback" not in "".join(capfd.readouterr())


class BrokenPool(PlantedPool):
    error: Exception = ValueError("the engine has a bug")

    def _advance(self, session: str, steps: int, deadline: float | None = None) -> Any:
        raise self.error


class LostPool(BrokenPool):
    error = LostEngineError("An engine died (of thirst).", "Give it water.")


@pytest.mark.parametrize(
    ("pool", "error", "words"),
    [
        (BrokenPool, ValueError, r"(?s)in _advance.*ValueError: the engine has a bug"),
        (LostPool, LostEngineError, r"^An engine died \(of thirst\)\. Give it water\.$"),
    ],
    ids=["bug", "lost"],
)
def test_a_bug_in_an_engine_keeps_its_trace_and_a_lost_engine_is_a_sentence(
    tmp_path: Path, pool: type[PlantedPool], error: type[Exception], words: str
) -> None:
    ray.cloudpickle.register_pickle_by_value(__import__(__name__))
    with pytest.raises(error, match=words):
        searched(tmp_path, pool(Surface()))
