"""The pool: one warm engine actor per accelerator, alive for a whole run."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray

from bandsearch.engine.handles import EngineHandles
from bandsearch.engine.setup import EngineSetup
from bandsearch.values.trial import Point

OBJECT_STORE_BYTES = 200 * 2**20
# Calls that may wait in one engine.
CALLERS = 64


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
        # Whoever is given a handle unpickles this class and all that its methods name; only the engine's own process is
        # to load what an engine is made of.
        import torch

        from bandsearch.engine.conductor import Conductor
        from bandsearch.engine.engine import Engine

        # Ctrl-C belongs to the driver, which lets a step finish.
        with contextlib.suppress(ValueError):
            signal.signal(signal.SIGINT, signal.SIG_IGN)
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
    def start(cls, setups: Sequence[EngineSetup]) -> EnginePool:
        # Ray lowers the priority of its workers; a budget is spent whether they get the cores or not.
        os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_DEDUP_LOGS="0", RAY_worker_niceness="0")
        # Ray tells everyone that its cluster asks for a token; nobody but this run ever talks to it.
        logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
        if not ray.is_initialized():
            scratch = tempfile.mkdtemp(prefix="bs-")
            atexit.register(shutil.rmtree, scratch, ignore_errors=True)
            ray.init(
                address="local",
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=False,
                object_store_memory=OBJECT_STORE_BYTES,
                num_cpus=max(4, len(setups) + 2),
                _temp_dir=scratch,
            )
        actors = []
        for setup in setups:
            gpus = 1 if setup.device.startswith("cuda") else 0
            # Without an environment of its own it takes a worker that Ray has started already.
            options = EngineActor.options(num_gpus=gpus, num_cpus=1)  # type: ignore[attr-defined]
            actors.append(options.remote(setup.model_copy(update={"device": "cuda:0"}) if gpus else setup))
        pool = cls(actors)
        try:
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

    def stop(self) -> None:
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []
        ray.shutdown()
