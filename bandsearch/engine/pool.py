"""The pool: one warm engine actor per accelerator, alive for a whole run."""

from __future__ import annotations

import asyncio
import atexit
import gc
import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ray

from bandsearch.engine.failures import LostEngineError
from bandsearch.engine.handles import EngineHandles
from bandsearch.engine.setup import EngineSetup
from bandsearch.values.progress import Stop, never
from bandsearch.values.trial import Point

OBJECT_STORE_BYTES = 200 * 2**20
# Ray's sockets lie 77 characters deeper, and the system takes 107 in all.
LONGEST_TEMPORARY = 30
# Calls that may wait in one engine.
CALLERS = 64
# How often it is asked whether to stop, seconds.
ASKING = 0.2


@ray.remote(max_concurrency=CALLERS)
class EngineActor:
    """An engine in a process of its own. All its work is done by one thread, in the order of asking."""

    def __init__(self, setup: EngineSetup) -> None:
        # Of an error that a constructor raises Ray keeps no more than its print.
        self._failure: Exception | None = None
        try:
            self._load(setup)
        except Exception as error:
            self._failure = error

    def _load(self, setup: EngineSetup) -> None:
        # Nearly every batch has a shape of its own; in segments of fixed size memory falls to pieces. Before torch 2.11
        # only the old name is heeded on a GPU (pytorch issue 183387).
        names = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
        if not any(name in os.environ for name in names):
            is_new = tuple(map(int, version("torch").split(".")[:2])) >= (2, 11)
            os.environ[names[is_new]] = "expandable_segments:True"
        # Modules are no garbage. Looking through them again and again took a fifth of the time that importing them
        # takes, and later collections are spared it too.
        gc.disable()
        try:
            # Whoever is given a handle unpickles this class and all that its methods name; only the engine's own
            # process is to load what an engine is made of.
            import torch

            from bandsearch.engine.conductor import Conductor
            from bandsearch.engine.engine import Engine
        finally:
            gc.freeze()
            gc.enable()

        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        self._thread = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(setup.threads,))
        self._engine = self._thread.submit(Engine.load, setup).result()
        self._conductor = Conductor(self._engine, self._engine.levers.packing or 1, self._run)

    async def ready(self) -> int:
        """Raises what kept the engine from loading."""
        if self._failure is not None:
            raise self._failure
        return os.getpid()

    async def advance(self, session: str, steps: int, deadline: float | None = None) -> Point:
        return await self._conductor.advance(session, steps, deadline)

    async def halt(self, session: str) -> None:
        self._conductor.halt(session)

    async def set_packing(self, candidates: int) -> None:
        self._conductor.packing = candidates

    async def call(self, method: str, *args: Any) -> Any:
        return await self._run(getattr(self._engine, method), *args)

    async def apply(self, work: Callable[..., Any], *args: Any) -> Any:
        return await self._run(work, self._engine, *args)

    async def _run(self, work: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *args)


class EnginePool(EngineHandles):
    """The engines of a run, from start to stop."""

    @classmethod
    def start(cls, setups: Sequence[EngineSetup], stop: Stop = never) -> EnginePool:
        """Raises LostEngineError where an engine does not start, or is not to any more since `stop()` is true."""
        # Ray lowers the priority of its workers; a budget is spent whether they get the cores or not.
        os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_DEDUP_LOGS="0", RAY_worker_niceness="0")
        # Ray tells everyone that its cluster asks for a token; nobody but this run ever talks to it.
        logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
        if not ray.is_initialized():
            _start_ray(setups)
        actors = []
        for setup in setups:
            gpus = 1 if setup.device.startswith("cuda") else 0
            # Without an environment of its own it takes a worker that Ray has started already.
            options = EngineActor.options(num_gpus=gpus, num_cpus=1)  # type: ignore[attr-defined]
            actors.append(options.remote(setup.model_copy(update={"device": "cuda:0"}) if gpus else setup))
        pool = cls(actors)
        try:
            with pool.abandoned_once(stop):
                for actor in actors:
                    pool.get(actor.ready.remote())
        except BaseException:
            pool.stop()
            raise
        return pool

    @property
    def handles(self) -> EngineHandles:
        """What other processes are given: it unpickles without loading what an engine is made of."""
        return EngineHandles(self._actors)

    def pack(self, candidates: int) -> None:
        """From now on every engine trains up to `candidates` sessions in one pass."""
        for actor in self._actors:
            self.get(actor.set_packing.remote(candidates))

    def abandon(self) -> None:
        """Kill the engines, whatever they do: whoever waits for one, in any thread, gets a LostEngineError."""
        for actor in self._actors:
            ray.kill(actor)

    @contextmanager
    def abandoned_once(self, stop: Stop, patience: float = 0.0) -> Iterator[None]:
        """Inside, the engines are abandoned `patience` seconds after `stop()` has become true: for work that does not
        ask, and of which nothing could be saved."""
        is_over = threading.Event()

        def watch() -> None:
            while not is_over.wait(ASKING):
                if stop():
                    if not is_over.wait(patience):
                        self.abandon()
                    return

        watcher = threading.Thread(target=watch, name="abandon", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            is_over.set()
            watcher.join()

    def stop(self) -> None:
        self.abandon()
        self._actors = []
        _end_ray()


def _start_ray(setups: Sequence[EngineSetup]) -> None:
    """Raises LostEngineError where Ray does not start."""
    temporary = tempfile.gettempdir()
    try:
        scratch = tempfile.mkdtemp(prefix="bs-", dir=temporary if len(temporary) <= LONGEST_TEMPORARY else "/tmp")
        atexit.register(shutil.rmtree, scratch, ignore_errors=True)
        if not _has_home():
            # Ray would write a token there.
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        with _own_sigterm(), _no_words_of_ray():
            ray.init(
                address="local",
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=False,
                object_store_memory=OBJECT_STORE_BYTES,
                # An engine each, and a twentieth for every trial of its pack.
                num_cpus=max(4, 2 * len(setups) + 2),
                num_gpus=sum(setup.device.startswith("cuda") for setup in setups),
                _temp_dir=scratch,
            )
    except Exception as error:
        ray.shutdown()
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise LostEngineError(
            f"Ray, which holds the engines, does not start ({reason.rstrip('.')}).",
            "See with `bandsearch doctor` that memory, disk and /dev/shm have room.",
        ) from error


def _has_home() -> bool:
    """Whether Ray's folder in the home directory can be written."""
    try:
        folder = Path.home() / ".ray"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return False
    return os.access(folder, os.W_OK)


def _end_ray() -> None:
    """Shut down without the second that Ray gives each of its processes to end by itself: they do not hear SIGTERM (see
    `_own_sigterm`), and the devices are charged for until all are gone."""
    node = getattr(ray._private.worker, "_global_node", None)
    if node is not None:
        kill = node.kill_all_processes
        node.kill_all_processes = lambda **_: kill(check_alive=False, allow_graceful=False)
    ray.shutdown()


@contextmanager
def _no_words_of_ray() -> Iterator[None]:
    """Of a Ray that is started inside nobody hears why a worker died: it writes a page on that to standard output,
    whatever it is told of logging, and whoever waits for the engine gets a sentence."""
    worker = ray._private.worker
    usual = getattr(worker, "listen_error_messages", None)
    worker.listen_error_messages = lambda *_: None
    try:
        yield
    finally:
        worker.listen_error_messages = usual


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """SIGTERM stays what it was for this process, and it and SIGHUP on Linux are nothing to the processes that are
    started here.

    Ray would end itself at once; schedulers signal a whole group, a terminal that is closed too, and a run is to finish
    its step. Ray blocks SIGINT in its processes in the same way. Elsewhere it ends what a killed driver left with
    SIGTERM, and has to be heard.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL
    unheard = {signal.SIGTERM, signal.SIGHUP} if sys.platform == "linux" else set()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, unheard)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
