"""Ctrl-C once asks to stop; twice ends the process and what it started, at once."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bandsearch.cli.interrupt import INTERRUPTED, descendants, stop_on_interrupt
from bandsearch.cli.session import session
from bandsearch.values.errors import InterruptedRunError

ROOT = Path(__file__).parents[2]

WORKER = """
import signal, subprocess, sys, time
from bandsearch.cli.interrupt import stop_on_interrupt
# The tests themselves may run under nohup.
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
with stop_on_interrupt(lambda words: print(words, flush=True)) as stop:
    stop()
    print(child.pid, flush=True)
    while not (stop() and len(sys.argv) > 1):
        time.sleep(0.01)
child.kill()
print("saved", flush=True)
"""


def _start(*arguments: str) -> tuple[subprocess.Popen[str], int]:
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert worker.stdout is not None
    return worker, int(worker.stdout.readline())


def test_the_first_interrupt_lets_the_step_finish() -> None:
    worker, _ = _start("polite")
    worker.send_signal(signal.SIGINT)
    rest, _ = worker.communicate(timeout=20)
    assert worker.returncode == 0
    assert "Ctrl-C again" in rest
    assert rest.endswith("saved\n")


def test_the_second_interrupt_ends_everything() -> None:
    worker, child = _start()
    worker.send_signal(signal.SIGINT)
    assert worker.stdout is not None
    worker.stdout.readline()
    worker.send_signal(signal.SIGINT)
    assert worker.wait(timeout=20) == INTERRUPTED
    assert "saved" not in worker.stdout.read()
    worker.stdout.close()
    deadline = time.monotonic() + 20
    while _is_alive(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _is_alive(child)


def _is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no terminals that hang up")
def test_a_terminal_that_is_closed_asks_to_stop_however_often_it_says_so() -> None:
    worker, _ = _start("polite")
    for _ in range(3):
        worker.send_signal(signal.SIGHUP)
    rest, _ = worker.communicate(timeout=20)
    assert worker.returncode == 0
    assert rest.endswith("saved\n")


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no terminals that hang up")
def test_what_comes_along_with_a_closed_terminal_is_no_second_interrupt() -> None:
    worker, child = _start()
    assert worker.stdout is not None
    worker.send_signal(signal.SIGHUP)
    worker.stdout.readline()
    worker.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert _is_alive(child)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(timeout=20) == INTERRUPTED


def test_under_nohup_a_closed_terminal_stays_unheard() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_interrupt(print) as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_where_nobody_asks_the_first_interrupt_ends_it() -> None:
    said: list[str] = []
    with stop_on_interrupt(said.append) as stop:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        assert stop()
    assert not said


def test_a_command_without_steps_that_is_interrupted_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InterruptedRunError, match="nothing to save") as raised, session(as_json=False):
        signal.raise_signal(signal.SIGINT)
    assert raised.value.exit_code == INTERRUPTED
    assert not capsys.readouterr().err


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with stop_on_interrupt(lambda words: None) as stop:
        assert signal.getsignal(signal.SIGINT) is not before
        assert not stop()
        signal.raise_signal(signal.SIGTERM)
        assert stop()
    assert signal.getsignal(signal.SIGINT) is before


def test_descendants_reads_names_with_spaces_and_parentheses(tmp_path: Path) -> None:
    for process, name, parent in ((5, "sh", 1), (6, "a b) (c", 5), (7, "x", 6), (8, "y", 1)):
        (tmp_path / str(process)).mkdir()
        (tmp_path / str(process) / "stat").write_text(f"{process} ({name}) S {parent} 0 0")
    assert sorted(descendants(5, tmp_path)) == [6, 7]
    assert descendants(8, tmp_path) == []
