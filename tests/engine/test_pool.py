"""Engines in processes of their own: what is said when they cannot be started, are lost, or have a bug."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import ray

from bandsearch.engine.engine import Engine
from bandsearch.engine.failures import LostEngineError
from bandsearch.engine.pool import EnginePool
from bandsearch.engine.setup import EngineSetup
from bandsearch.values.errors import DataError, ModelError


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


def test_a_bug_is_no_lost_engine_and_keeps_its_trace(pool: EnginePool) -> None:
    with pytest.raises(KeyError, match=r"(?s)in bug.*KeyError: 'layer'"):
        pool.apply(0, bug)
    assert pool.apply(0, process) > 0


def process(engine: Engine) -> int:
    return os.getpid()


def sleep(engine: Engine) -> None:
    time.sleep(60)


def test_an_engine_that_is_killed_is_lost_in_one_sentence(pool: EnginePool) -> None:
    number = pool.apply(0, process)
    asleep = pool.apply_async(0, sleep)
    os.kill(number, signal.SIGKILL)
    with pytest.raises(LostEngineError, match=r"^An engine died \([^\n]{1,100}\)\. Look for[^\n]*$"):
        pool.get(asleep)
