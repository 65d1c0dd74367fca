"""What the main flow leaves behind where it is refused or fails, and what it says then."""

import errno
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bandsearch.engine.failures import LostEngineError
from bandsearch.run import main
from bandsearch.values import ledger
from bandsearch.values.budget import Budget
from bandsearch.values.errors import BandsearchError, BudgetError, InterruptedRunError, ModelError, RunDirectoryError
from bandsearch.values.space import SearchSpace
from bandsearch.values.spec import DataSpec, ModelSpec, RunSpec

SPEC = RunSpec(
    model=ModelSpec(name="demo"),
    data=DataSpec(name="demo:anything"),
    space=SearchSpace(name="quick"),
    budget=Budget.parse("5min"),
)


def starts_with(monkeypatch: pytest.MonkeyPatch, start: Callable[..., Any]) -> None:
    job = SimpleNamespace(dataset=SimpleNamespace(notes=()), devices=1, budget_seconds=None)
    monkeypatch.setattr(main, "prepare_job", lambda spec: job)
    monkeypatch.setattr(main, "environment", lambda job: SPEC)
    monkeypatch.setattr(main, "start_engines", start)


def fails_at_start(monkeypatch: pytest.MonkeyPatch, error: BandsearchError) -> None:
    def failing(*_: Any) -> None:
        raise error

    starts_with(monkeypatch, failing)


@pytest.mark.parametrize(
    ("error", "stays"),
    [
        (BudgetError("Too small."), False),
        (ModelError("Not a model."), False),
        (LostEngineError("An engine died.", "Look."), True),
        (RunDirectoryError("The disk is full."), True),
    ],
)
def test_a_new_directory_goes_with_a_refusal_and_stays_where_the_run_can_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BandsearchError, stays: bool
) -> None:
    fails_at_start(monkeypatch, error)
    with pytest.raises(type(error)) as raised:
        main.run(SPEC, tmp_path / "run")
    assert (tmp_path / "run" / "spec.yaml").exists() is stays
    if isinstance(error, LostEngineError):
        assert f"bandsearch resume {tmp_path / 'run'}" in str(raised.value)


def test_an_engine_lost_after_the_person_asked_to_stop_is_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails_at_start(monkeypatch, LostEngineError("An engine died.", "Look."))
    with pytest.raises(InterruptedRunError, match="bandsearch resume") as raised:
        main.run(SPEC, tmp_path / "run", stop=lambda: True)
    assert raised.value.exit_code == 130


def test_devices_are_released_though_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    released = []

    def start(*_: Any) -> SimpleNamespace:
        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(ledger, "append_line", full)
        return SimpleNamespace(stop=lambda: released.append(True))

    starts_with(monkeypatch, start)
    with pytest.raises(RunDirectoryError, match=r"is full.*bandsearch resume"):
        main.run(SPEC, tmp_path / "run")
    assert released
    assert (tmp_path / "run" / "spec.yaml").exists()
