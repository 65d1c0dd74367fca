"""What a finished run leaves in the atlas, and that it is finished whether or not that can be written."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from atlas_records import a_record, candidate_on
from trial_results import a_result

from bandsearch.atlas import read_records
from bandsearch.run import record
from bandsearch.values.band import Band
from bandsearch.values.candidate import Role
from bandsearch.values.evaluation import Choice, Trained
from bandsearch.values.progress import Update
from bandsearch.values.trial import TrialResult


def trial(number: int, start: int, stop: int, losses: list[float], stage: str = "search") -> TrialResult:
    return a_result(number, candidate_on(start, stop, 1e-3 * (number + 1)), losses, stage=stage)


def test_every_band_is_read_once_where_its_candidates_got_furthest() -> None:
    found = record.readings(
        [
            trial(0, 0, 4, [0.2]),
            trial(1, 0, 4, [0.9, 0.5]),
            trial(2, 0, 4, [0.8, 0.4]),
            trial(3, 4, 8, [0.1]),
            trial(4, 2, 6, []),
            trial(5, 2, 6, [0.1, 0.1], stage="confirm"),
        ]
    )
    assert [(each.bands[0], each.candidates, each.steps, each.loss) for each in found] == [
        (Band(start=0, stop=4), 3, 90, 0.4),
        (Band(start=4, stop=8), 1, 30, 0.1),
    ]


@pytest.mark.parametrize("wins", [True, False])
def test_a_rate_that_diverged_in_the_final_training_is_not_recommended(wins: bool) -> None:
    chosen = a_record().winner
    lowered = tuple(
        Trained(candidate=each, learning_rate=each.learning_rate / 3, steps=90, kept_step=60)
        for each in (chosen.candidate, chosen.baseline)
    )
    fell_back = {"candidate": chosen.baseline, "role": Role.FULL_DEPTH, "choice": Choice.BASELINE}
    winner = chosen.model_copy(update={"trainings": lowered} | ({} if wins else fell_back))
    left = a_record().model_copy(update={"winner": record.as_trained(winner)})
    assert left.recommended is not None
    assert left.recommended.candidate == candidate_on(4, 8, 1e-3)
    assert left.winner.candidate == (candidate_on(4, 8, 1e-3) if wins else left.winner.baseline)
    assert left.winner.baseline.learning_rate == pytest.approx(chosen.baseline.learning_rate / 3)


def test_an_atlas_that_cannot_be_written_is_said_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "record_of", lambda home, job: a_record())
    said: list[Update] = []

    def leave(directory: Path) -> None:
        record.leave_record(None, SimpleNamespace(spec=SimpleNamespace(atlas=str(directory))), said.append)  # type: ignore[arg-type]

    leave(tmp_path / "atlas")
    assert said == []
    assert read_records(tmp_path / "atlas", str) == [a_record()]
    (tmp_path / "file").write_text("in the way")
    leave(tmp_path / "file")
    assert len(said) == 1
    assert "cannot be written" in said[0].message
