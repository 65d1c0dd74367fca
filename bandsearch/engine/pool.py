"""The pool: one warm engine actor per accelerator, alive for a whole run."""

from __future__ import annotations

import logging
import os
import signal
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayTaskError

from bandsearch.engine.engine import Engine
from bandsearch.engine.setup import EngineSetup
from bandsearch.values.errors import BandsearchError

Result = TypeVar("Result")
OBJECT_STORE_BYTES = 200 * 2**20


@ray.remote
class EngineActor:
    """An engine in a process of its own. One call at a time."""

    def __init__(self, setup: EngineSetup) -> None:
        # Ctrl-C belongs to the driver, which lets a step finish.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._engine = Engine.load(setup)

    def ready(self) -> int:
        return os.getpid()

    def call(self, method: str, *args: Any) -> Any:
        return getattr(self._engine, method)(*args)

    def apply(self, work: Callable[..., Any], *args: Any) -> Any:
        return work(self._engine, *args)


class EnginePool:
    """Engines by index. Pickles as its handles, so that a proxy in another process can use it."""

    def __init__(self, actors: Sequence[ActorHandle]) -> None:
        self._actors = list(actors)

    @classmethod
    def start(cls, setups: Sequence[EngineSetup]) -> EnginePool:
        # Ray lowers the priority of its workers; a budget is spent whether they get the cores or not.
        os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_DEDUP_LOGS="0", RAY_worker_niceness="0")
        # Ray tells everyone that its cluster asks for a token; nobody but this run ever talks to it.
        logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
        if not ray.is_initialized():
            ray.init(
                address="local",
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=False,
                object_store_memory=OBJECT_STORE_BYTES,
                num_cpus=max(4, len(setups) + 2),
                _temp_dir=str(Path(tempfile.mkdtemp(prefix="bs-"))),
            )
        actors = []
        for setup in setups:
            environment = {"env_vars": {"OMP_NUM_THREADS": str(setup.threads), "TOKENIZERS_PARALLELISM": "false"}}
            gpus = 1 if setup.device.startswith("cuda") else 0
            actor = EngineActor.options(  # type: ignore[attr-defined]
                num_gpus=gpus, num_cpus=1, runtime_env=environment
            ).remote(setup.model_copy(update={"device": "cuda:0"}) if gpus else setup)
            actors.append(actor)
        pool = cls(actors)
        try:
            for actor in actors:
                pool.get(actor.ready.remote())
        except BaseException:
            pool.stop()
            raise
        return pool

    @property
    def size(self) -> int:
        return len(self._actors)

    def submit(self, index: int, method: str, *args: Any) -> Any:
        return self._actors[index].call.remote(method, *args)

    def get(self, reference: Any) -> Any:
        try:
            return ray.get(reference)
        except RayTaskError as error:
            # A full disk is told by its errno, which Ray's wrapper does not carry.
            if isinstance(error.cause, BandsearchError | OSError):
                raise error.cause from None
            raise
        except RayActorError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, BandsearchError):
                raise cause from None
            raise BandsearchError(
                f"An engine died ({str(error).splitlines()[0]}).",
                "Look for a kill for lack of memory, then go on with `bandsearch resume`.",
            ) from error

    def apply(self, index: int, work: Callable[..., Result], *args: Any) -> Result:
        result: Result = self.get(self._actors[index].apply.remote(work, *args))
        return result

    def stop(self) -> None:
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []
        ray.shutdown()
