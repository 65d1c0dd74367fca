from __future__ import annotations

import errno
import sqlite3
from collections import deque
from pathlib import Path

import optuna
import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine
from surface import LAYOUT, RATES

from bandsearch.search.archive import STUDY_NAME, Archive
from bandsearch.search.candidates import CandidateCode
from bandsearch.search.proposal import Proposal
from bandsearch.values.band import Band
from bandsearch.values.candidate import Candidate, Role
from bandsearch.values.errors import RunDirectoryError
from bandsearch.values.space import SearchSpace
from bandsearch.values.spec import Objective
from bandsearch.values.trial import Point, TrialState

CODE = CandidateCode(SearchSpace(name="x"), LAYOUT, RATES)


def proposal(number: int, rank: int = 8) -> Proposal:
    candidate = Candidate(
        bands=(Band(start=number, stop=number + 3),), rank=rank, alpha=32, targets=("all",), learning_rate=1e-3
    )
    return Proposal(
        number=number, candidate=candidate, role=Role.SEARCHED, proposed_by="test", seed=0, trainable_parameters=7
    )


def points(*losses: float) -> list[Point]:
    return [Point(steps=30 * 3**index, loss=loss, seconds=0) for index, loss in enumerate(losses)]


def stored(path: Path) -> dict[int, optuna.trial.FrozenTrial]:
    study = optuna.load_study(study_name=STUDY_NAME, storage=f"sqlite:///{path}")
    numbers = [trial.user_attrs["number"] for trial in study.trials]
    assert len(set(numbers)) == len(numbers)
    return {trial.user_attrs["number"]: trial for trial in study.trials}


def test_any_optuna_tool_reads_how_trials_ended(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    archive = Archive(path, CODE, Objective.LOSS)
    for number in range(5):
        archive.begin(proposal(number, rank=8 if number else 5))
    archive.end(proposal(0).result(TrialState.COMPLETE, points(0.9, 0.4)))
    archive.end(proposal(1).result(TrialState.PRUNED, points(0.8), "too slow"))
    archive.end(proposal(2).result(TrialState.DIVERGED, points(0.9), "not a number"))
    archive.end(proposal(3).result(TrialState.OUT_OF_MEMORY, (), "no room"))
    trials = stored(path)
    assert [trials[n].state.name for n in range(5)] == ["COMPLETE", "PRUNED", "FAIL", "FAIL", "RUNNING"]
    assert trials[0].value == 0.4
    assert trials[0].params == {}, "a baseline outside the space has no point in it"
    assert trials[1].intermediate_values == {30: 0.8}
    assert trials[1].params["width"] == 3
    assert trials[1].user_attrs["reason"] == "too slow"


def test_two_objectives_keep_their_curves(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    archive = Archive(path, CODE, Objective.PARETO)
    for number in range(2):
        archive.begin(proposal(number))
    archive.end(proposal(0).result(TrialState.COMPLETE, points(0.9, 0.4)))
    archive.end(proposal(1).result(TrialState.PRUNED, points(0.8)))
    trials = stored(path)
    assert trials[0].values == [0.4, 7.0]
    assert trials[1].state.name == "PRUNED"
    assert trials[1].user_attrs["loss_by_steps"] == {"30": 0.8}


@pytest.mark.parametrize("objective", list(Objective))
def test_the_records_are_right_where_the_two_differ(tmp_path: Path, objective: Objective) -> None:
    """A process died with 0 told, 1 on record but not told, 2 and 4 running, and 3 known to the records alone."""
    path = tmp_path / "study.db"
    archive = Archive(path, CODE, objective)
    for number in (0, 1, 2, 4):
        archive.begin(proposal(number))
    results = [proposal(number).result(TrialState.COMPLETE, points(0.9, 0.4)) for number in (0, 1, 3)]
    archive.end(results[0])
    again = Archive(path, CODE, objective)
    assert again.unfinished(results) == [proposal(2), proposal(4)]
    assert again.unfinished(results) == [proposal(2), proposal(4)]
    again.end(proposal(2).result(TrialState.PRUNED, points(0.9)))
    assert {n: t.state.name for n, t in stored(path).items()} == {
        0: "COMPLETE",
        1: "COMPLETE",
        2: "PRUNED",
        3: "COMPLETE",
        4: "RUNNING",
    }
    again.abandon_unfinished()
    assert stored(path)[4].state.name == "FAIL"
    assert again.unfinished(results) == []


def test_a_lost_study_is_made_again_from_the_records(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    results = [proposal(number).result(TrialState.COMPLETE, points(0.9, 0.4)) for number in range(3)]
    assert Archive(path, CODE, Objective.LOSS).unfinished(results) == []
    assert len(stored(path)) == 3


def test_a_damaged_study_is_named_with_a_remedy(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    path.write_bytes(b"this is no database" * 100)
    with pytest.raises(RunDirectoryError, match=r"study\.db cannot be used: .*delete it"):
        Archive(path, CODE, Objective.LOSS)


def test_a_full_disk_is_one_by_its_number(tmp_path: Path) -> None:
    """So that whoever holds the run directory says how to go on."""

    def no_more_room(connection: sqlite3.Connection, _: object) -> None:
        # Less than there are pages: the file may not grow.
        connection.execute("PRAGMA max_page_count=1")

    Archive(tmp_path / "study.db", CODE, Objective.LOSS)
    event.listen(Engine, "connect", no_more_room)
    try:
        archive = Archive(tmp_path / "study.db", CODE, Objective.LOSS)
        with pytest.raises(OSError, match="No space left") as raised:
            deque(map(archive.begin, map(proposal, range(100))), maxlen=0)
    finally:
        event.remove(Engine, "connect", no_more_room)
    assert raised.value.errno == errno.ENOSPC
