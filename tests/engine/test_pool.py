"""Engines in processes of their own: what is said when they cannot be started, are lost, or have a bug."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import exceptions

from bandsearch.engine.engine import Engine
from bandsearch.engine.failures import LostEngineError
from bandsearch.engine.handles import engine_errors
from bandsearch.engine.pool import EnginePool
from bandsearch.engine.setup import EngineSetup
from bandsearch.values.errors import DataError, ModelError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pool(setup_of: Callable[[str], EngineSetup]) -> Iterator[EnginePool]:
    # An engine's process cannot import a module of the tests.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    pool = EnginePool.start([setup_of("qwen2")])
    yield pool
    pool.stop()


def test_what_keeps_an_engine_from_loading_is_said_as_it_was_written(setup_of: Callable[[str], EngineSetup]) -> None:
    setup = setup_of("qwen2")
    absent = setup.source.model_copy(update={"location": f"{setup.source.location}-not"})
    with pytest.raises(ModelError, match=r"^The hub has no model .*-not, and there is no such directory"):
        EnginePool.start([setup.model_copy(update={"source": absent})])


def test_engines_are_not_waited_for_any_more_once_a_stop_is_asked_for(setup_of: Callable[[str], EngineSetup]) -> None:
    with pytest.raises(LostEngineError):
        EnginePool.start([setup_of("qwen2")], lambda: True)


def collecting(engine: Engine) -> tuple[bool, int]:
    return gc.isenabled(), gc.get_freeze_count()


def test_an_engine_collects_garbage_but_not_among_its_modules(pool: EnginePool) -> None:
    """Hundreds of thousands of objects that stay, which took a fifth of the time that importing them takes."""
    is_on, left_alone = pool.apply(0, collecting)
    assert is_on
    assert left_alone > 100_000


def raises(engine: Engine, error: Exception) -> None:
    raise error


def bug(engine: Engine) -> Any:
    return {}["layer"]


def test_a_sentence_and_a_failing_disk_come_as_they_are(pool: EnginePool) -> None:
    with pytest.raises(DataError, match=r"^Nothing to read\. Look\.$"):
        pool.apply(0, raises, DataError("Nothing to read.", "Look."))
    with pytest.raises(OSError, match="No space") as failed:
        pool.apply(0, raises, OSError(28, "No space left on device"))
    assert failed.value.errno == 28


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("CUDA out of memory. Tried to allocate 2 GiB.\nSee", r"ran out of memory \(CUDA out of memory\)\. .*memory"),
        ("DefaultCPUAllocator: can't allocate memory", "ran out of memory"),
        (
            "CUDA error: an illegal memory access\nCUDA kernel errors",
            r"failed \(CUDA error: an illegal memory access\)",
        ),
    ],
)
def test_memory_and_accelerator_are_a_sentence(pool: EnginePool, words: str, sentence: str) -> None:
    with pytest.raises(LostEngineError, match=sentence):
        pool.apply(0, raises, RuntimeError(words))


def test_rays_watch_over_the_memory_is_a_sentence() -> None:
    words = "Task was killed due to the node running low on memory.\nMemory on the node was 7.9GB / 8GB"
    with (
        pytest.raises(LostEngineError, match=r"memory \(Task was .* low on memory\)\. .*--batch-size.*--dtype nf4"),
        engine_errors(),
    ):
        raise exceptions.OutOfMemoryError(words)


def test_a_bug_is_no_lost_engine_and_keeps_its_trace(pool: EnginePool) -> None:
    with pytest.raises(KeyError, match=r"(?s)in bug.*KeyError: 'layer'"):
        pool.apply(0, bug)
    assert pool.apply(0, process) > 0


def process(engine: Engine) -> int:
    return os.getpid()


def sleep(engine: Engine) -> None:
    time.sleep(60)


def test_who_waits_for_an_engine_that_is_abandoned_waits_no_longer(
    pool: EnginePool, setup_of: Callable[[str], EngineSetup]
) -> None:
    another = EnginePool.start([setup_of("qwen2")])
    timer = threading.Timer(0.2, another.abandon)
    timer.start()
    with pytest.raises(LostEngineError, match="An engine died"):
        another.apply(0, sleep)
    timer.join()
    assert pool.apply(0, process) > 0


def test_work_that_does_not_ask_is_ended_once_a_stop_is_asked_for(
    pool: EnginePool, setup_of: Callable[[str], EngineSetup]
) -> None:
    another, asked = EnginePool.start([setup_of("qwen2")]), threading.Event()
    timer = threading.Timer(0.2, asked.set)
    timer.start()
    with pytest.raises(LostEngineError, match="An engine died"), another.abandoned_once(asked.is_set):
        another.apply(0, sleep)
    timer.join()
    with pool.abandoned_once(lambda: True, patience=60):
        time.sleep(0.5)
        assert pool.apply(0, process) > 0
    assert pool.apply(0, process) > 0


def test_an_engine_that_is_killed_is_lost_in_one_sentence(pool: EnginePool) -> None:
    # What Ray says of it besides comes seconds later, from a thread of its own that writes to standard output.
    assert not any("error_messages" in thread.name for thread in threading.enumerate())
    number = pool.apply(0, process)
    asleep = pool.apply_async(0, sleep)
    os.kill(number, signal.SIGKILL)
    with pytest.raises(LostEngineError, match=r"^An engine died \([^\n]{1,100}\)\. Look for[^\n]*$"):
        pool.get(asleep)


DRIVER = """
import os, signal, sys, time
from pathlib import Path
from bandsearch.cli.interrupt import stop_on_interrupt
from bandsearch.engine.handles import engine_errors
from bandsearch.engine.pool import EnginePool
from bandsearch.engine.setup import EngineSetup

def work(engine):
    time.sleep(2)
    return "worked"

# The tests themselves may run under nohup.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
with stop_on_interrupt(lambda words: print("asked", flush=True)) as stop:
    pool = EnginePool.start([EngineSetup.model_validate_json(sys.argv[1])], stop)
    working = pool.apply_async(0, work)
    time.sleep(0.5)
    os.killpg(0, int(sys.argv[2]))
    print(pool.get(working), stop(), pool.apply(0, work), flush=True)
    pool.stop()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_to_the_whole_group_is_a_first_interrupt_and_engines_live_on(
    setup_of: Callable[[str], EngineSetup], tmp_path: Path, number: signal.Signals
) -> None:
    """As batch systems send it, or a terminal that is closed. The folder for temporary files is too deep for the
    sockets of Ray, besides, and there is no home."""
    deep = tmp_path / ("deep" * 20)
    deep.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, setup_of("qwen2").model_dump_json(), str(int(number))],
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(deep), "HOME": "/proc/none", "OMP_NUM_THREADS": "1"},
    )
    assert (done.returncode, done.stdout) == (0, "asked\nworked True worked\n"), done.stderr
    assert not list(deep.glob("bs-*"))


def test_where_ray_does_not_start_it_is_a_sentence(
    setup_of: Callable[[str], EngineSetup], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(**_: Any) -> None:
        raise ValueError("The current node timed out.\nAnd more.")

    monkeypatch.setattr(ray, "init", failing)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(LostEngineError, match=r"does not start \(The current node timed out\)\. See with"):
        EnginePool.start([setup_of("qwen2")])
    assert signal.getsignal(signal.SIGTERM) is before
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, set())
