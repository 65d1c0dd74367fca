"""A search killed anywhere and continued comes to the same end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from surface import LAYOUT, RATES, MemoryRecords, PlantedPool, Surface, plan, profile
from tune_loop import run_in_process

from bandsearch.search import search
from bandsearch.search.archive import Archive
from bandsearch.search.candidates import CandidateCode
from bandsearch.search.confirm import confirm
from bandsearch.values.evaluation import Winner
from bandsearch.values.space import SearchSpace
from bandsearch.values.spec import Objective
from bandsearch.values.trial import TrialResult, TrialState

TRIALS = 16


class Killed(BaseException):
    """The process is gone."""


class Doom:
    """Kills at the `at`-th time that anything durable or any training happens."""

    def __init__(self, at: int) -> None:
        self.left = at

    def pass_by(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed


@pytest.fixture(autouse=True)
def _in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "_run_tune", run_in_process)


def job(
    folder: Path,
    records: MemoryRecords,
    pool: PlantedPool,
    objective: Objective = Objective.LOSS,
    trials: int = TRIALS,
    stop: Any = lambda: False,
) -> tuple[list[TrialResult], Winner]:
    planned = plan(trials=trials, confirm_seeds=2, finalists=3)
    common: dict[str, Any] = {"layout": LAYOUT, "profile": profile(), "plan": planned, "seed": 3, "records": records}
    results = search.run_search(
        pool,
        space=SearchSpace(name="planted"),
        study_path=folder / "study.db",
        scratch=folder,
        wall_left=lambda: float("inf"),
        objective=objective,
        stop=stop,
        **common,
    )
    if stop():
        raise Killed
    return results, confirm(pool, results=results, wall_left=lambda: float("inf"), **common)


@pytest.mark.parametrize("objective", list(Objective))
def test_killed_anywhere_and_continued_the_run_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: Objective
) -> None:
    (tmp_path / "reference").mkdir()
    reference_records, reference_pool = MemoryRecords(), PlantedPool(Surface())
    results, winner = job(tmp_path / "reference", reference_records, reference_pool, objective)
    assert [result.number for result in results] == list(range(TRIALS))

    doom = Doom(0)
    begin, end, append = Archive.begin, Archive.end, MemoryRecords.append

    def around(work: Any) -> Any:
        def doomed(*args: Any) -> Any:
            doom.pass_by()
            done = work(*args)
            doom.pass_by()
            return done

        return doomed

    monkeypatch.setattr(Archive, "begin", around(begin))
    monkeypatch.setattr(Archive, "end", around(end))
    monkeypatch.setattr(MemoryRecords, "append", around(append))
    monkeypatch.setattr(PlantedPool, "get", around(PlantedPool.get))
    folder, records, pool = tmp_path / "killed", MemoryRecords(), PlantedPool(Surface())
    folder.mkdir()
    kills = 0
    for life in range(200):
        doom.left = 17 + life % 13
        try:
            again, same_winner = job(folder, records, pool, objective)
            break
        except Killed:
            kills += 1
    assert kills > 15
    assert again == results
    assert same_winner == winner
    assert sorted(records.lines) == sorted(reference_records.lines), "nothing is lost or recorded twice"


def test_a_longer_search_goes_on_where_the_shorter_one_ended(tmp_path: Path) -> None:
    records, pool = MemoryRecords(), PlantedPool(Surface())
    first, _ = job(tmp_path, records, pool, trials=6)
    trained = pool.trainings
    again, _ = job(tmp_path, records, pool, trials=6)
    assert again == first
    assert pool.trainings == trained


def test_stopped_by_the_caller_it_leaves_nothing_half_recorded(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    whole, winner = job(tmp_path / "a", MemoryRecords(), PlantedPool(Surface()))
    records, pool = MemoryRecords(), PlantedPool(Surface())
    with pytest.raises(Killed):
        job(tmp_path / "b", records, pool, stop=lambda: pool.trainings >= 7)
    assert 5 <= len(records.lines) <= 7
    assert job(tmp_path / "b", records, pool) == (whole, winner)


def test_a_time_bound_search_over_several_engines_is_continued_with_what_was_under_way(tmp_path: Path) -> None:
    records, pool = MemoryRecords(), PlantedPool(Surface(), size=3)

    def searched(stop: Any) -> list[TrialResult]:
        return search.run_search(
            pool,
            space=SearchSpace(name="planted"),
            layout=LAYOUT,
            profile=profile(),
            plan=plan(expected=20),
            seed=0,
            records=records,
            study_path=tmp_path / "study.db",
            scratch=tmp_path,
            wall_left=lambda: 0.0 if pool.trainings >= 16 else 1e9,
            stop=stop,
        )

    first = searched(lambda: pool.trainings >= 8)
    unfinished = Archive(tmp_path / "study.db", _code(), Objective.LOSS).unfinished(first)
    assert 1 <= len(unfinished) <= 3
    everything = searched(lambda: False)
    assert [result.number for result in everything] == list(range(len(everything)))
    assert {each.number: each.candidate for each in unfinished}.items() <= {
        result.number: result.candidate for result in everything
    }.items()
    assert len(records.lines) == len(everything)


def _code() -> CandidateCode:
    return CandidateCode(SearchSpace(name="planted"), LAYOUT, RATES)


def test_failures_are_results(tmp_path: Path) -> None:
    """Fast rates diverge and large adapters do not fit: said so, never chosen, and the search goes on."""
    surface = Surface(diverges_above=4e-3, out_of_memory_above=12 * 16)
    records = MemoryRecords()
    results, winner = job(tmp_path, records, PlantedPool(surface), trials=30)
    states = {state: [r for r in results if r.state is state] for state in TrialState}
    assert len(results) == 30
    assert states[TrialState.DIVERGED]
    assert all(r.candidate.learning_rate > 4e-3 for r in states[TrialState.DIVERGED])
    assert all(len(r.candidate.layers) * r.candidate.rank > 192 for r in states[TrialState.OUT_OF_MEMORY])
    assert all(r.reason for r in states[TrialState.DIVERGED] + states[TrialState.PRUNED])
    assert winner.candidate.learning_rate <= 4e-3
