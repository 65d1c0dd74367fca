"""The ledger charges devices x time, survives kills, and agrees with its own file."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bandsearch.values.errors import RunDirectoryError
from bandsearch.values.ledger import Ledger, devices_held, read_ledger


def test_stages_are_charged_by_device(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.jsonl", devices=4, limit_seconds=100, tick=0.02) as ledger:
        started = time.monotonic()
        with ledger.stage("probe"):
            time.sleep(0.1)
        with ledger.stage("search"):
            time.sleep(0.05)
        elapsed = time.monotonic() - started
    assert set(ledger.by_stage) == {"probe", "search"}
    assert ledger.by_stage["probe"] >= 0.4
    assert ledger.spent <= elapsed * 4
    assert ledger.left == pytest.approx(100 - ledger.spent)
    assert ledger.wall_left == pytest.approx(ledger.left / 4)
    assert read_ledger(tmp_path / "ledger.jsonl") == pytest.approx(ledger.by_stage, abs=1e-3)
    assert devices_held(tmp_path / "ledger.jsonl") == 4


def test_a_new_session_goes_on_and_the_pause_is_free(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with Ledger(path, devices=1, limit_seconds=None) as ledger, ledger.stage("search"):
        time.sleep(0.03)
    first = ledger.spent
    time.sleep(0.1)
    with Ledger(path, devices=1, limit_seconds=None) as ledger:
        assert ledger.spent == pytest.approx(first, abs=1e-3)
        with ledger.stage("search"):
            time.sleep(0.03)
    assert first < ledger.spent < first + 0.1


def test_a_killed_process_loses_at_most_a_tick(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    program = (
        "import sys, time; from pathlib import Path; from bandsearch.values.ledger import Ledger\n"
        f"with Ledger(Path({str(path)!r}), 1, None, tick=0.05) as ledger, ledger.stage('search'):\n"
        "    print('open', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        started = time.monotonic()
        time.sleep(0.5)
        process.kill()
        lived = time.monotonic() - started
    assert read_ledger(path)["search"] >= min(0.2, lived - 0.3)


def test_a_torn_last_line_is_cut_and_a_damaged_one_named(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    entry = {"stage": "search", "stage_seconds": 5.0}
    path.write_text(json.dumps(entry) + '\n{"stage": "sea')
    with Ledger(path, devices=1, limit_seconds=10) as ledger:
        assert ledger.spent == 5.0
        with ledger.stage("confirm"):
            pass
    assert all(json.loads(line) for line in path.read_text().splitlines())
    path.write_text("nonsense\n" + json.dumps(entry) + "\n")
    with pytest.raises(RunDirectoryError, match=r"ledger\.jsonl:1"):
        read_ledger(path)


def test_a_full_disk_is_told_as_such_and_ends_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with Ledger(tmp_path / "ledger.jsonl", devices=1, limit_seconds=None) as ledger:
        with pytest.raises(OSError, match="No space"), ledger.stage("search"):
            monkeypatch.setattr("bandsearch.values.ledger.append_line", full)
        with pytest.raises(OSError, match="No space"), ledger.stage("close"):
            pytest.fail("a stage that cannot be charged is not begun")
        monkeypatch.undo()
        with ledger.stage("close"):
            time.sleep(0.02)
    assert ledger.by_stage["close"] >= 0.02
