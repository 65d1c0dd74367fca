"""A display that cannot show anything does not end the work it shows."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

WORK = """
import signal, sys
from bandsearch.cli import app
from bandsearch.cli.session import session
from bandsearch.values.progress import Update

def work(**_):
    with session("--json" in sys.argv) as at:
        sys.stdin.readline()
        at.stop()
        for step in range(20):
            at.listen(Update(stage="search", message=f"{step} → {step + 1} " * 200))
        signal.raise_signal(signal.SIGINT)
        at.write({"event": "result", "asked": at.stop()})
    at.console.print("[bold]Done[/bold]")
    with open(sys.argv[1], "w") as file:
        file.write(f"finished, {at.stop()}")

app.app = work
app.main()
"""


def start(*arguments: str, **streams: int) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    return subprocess.Popen(
        [sys.executable, "-c", WORK, *arguments], text=True, env=environment, stdin=subprocess.PIPE, **streams
    )


@pytest.mark.parametrize("how", ["lines", "--json"])
def test_work_goes_on_without_a_reader(tmp_path: Path, how: str) -> None:
    """As after `bandsearch run ... 2>&1 | tee log` whose tee was killed."""
    reading, writing = os.pipe()
    worker = start(str(tmp_path / "end"), how, stdout=writing, stderr=writing)
    os.close(writing)
    os.close(reading)
    worker.communicate("go\n", timeout=60)
    assert worker.returncode == 0
    assert (tmp_path / "end").read_text() == "finished, True"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_under_the_output_is_a_sentence() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "bandsearch", "models"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            timeout=60,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr == "bandsearch: The disk or pipe that the output goes to is full. Free some space.\n"


def test_what_the_locale_cannot_write_is_replaced(tmp_path: Path) -> None:
    worker = start(str(tmp_path / "end"), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, errors = worker.communicate("go\n", timeout=60)
    assert (worker.returncode, "Traceback" in errors) == (0, False)
    assert out.startswith("search: 0 ? 1")
    assert out.count("\n") == 21
    assert out.endswith("Done\n")
