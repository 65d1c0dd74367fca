"""Handles of running engines: all that a process needs to ask them for work. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import ray
from ray import exceptions
from ray.actor import ActorHandle

from bandsearch.engine.failures import LESS_MEMORY, NO_MEMORY, LostEngineError
from bandsearch.values.errors import BandsearchError

Result = TypeVar("Result")

_REMEDY = f"Free memory on this machine, or take a smaller --batch-size. {LESS_MEMORY}"


class EngineHandles:
    """Engines by index. Pickles, so that a proxy in another process can use it."""

    def __init__(self, actors: Sequence[ActorHandle]) -> None:
        self._actors = list(actors)

    @property
    def size(self) -> int:
        return len(self._actors)

    def submit(self, index: int, method: str, *args: Any) -> Any:
        """Start `method` of engine `index`. Sessions advanced at the same time train together where that pays;
        `halt` is heard meanwhile, and ends the session's advance after a step."""
        if method in ("advance", "halt"):
            return getattr(self._actors[index], method).remote(*args)
        return self._actors[index].call.remote(method, *args)

    def get(self, reference: Any) -> Any:
        """Wait for what was started. Raises as `engine_errors` says."""
        with engine_errors():
            return ray.get(reference)

    def get_all(self, references: Sequence[Any]) -> list[Any]:
        """As `get`, of several; raises the first failure, whoever else is still at work."""
        waiting = list(references)
        while waiting:
            done, waiting = ray.wait(waiting)
            self.get(done[0])
        return [self.get(reference) for reference in references]

    def apply_async(self, index: int, work: Callable[..., Any], *args: Any) -> Any:
        """Start `work(engine, *args)` where the engine is."""
        return self._actors[index].apply.remote(work, *args)

    def apply(self, index: int, work: Callable[..., Result], *args: Any) -> Result:
        """Run `work(engine, *args)` where the engine is, and wait for it."""
        result: Result = self.get(self.apply_async(index, work, *args))
        return result


@contextmanager
def engine_errors() -> Iterator[None]:
    """Raise what an engine raised: a BandsearchError or an OSError as itself, a lack of memory and a lost engine as a
    LostEngineError. Anything else is a bug, and keeps its trace in the engine."""
    try:
        yield
    except exceptions.RayError as error:
        failure = _failure(error)
        if failure is error:
            raise
        raise failure from error


def _failure(error: BaseException) -> BaseException:
    cause = error
    # A process that asks an engine wraps what it is told once more.
    while isinstance(cause, exceptions.RayTaskError) and isinstance(cause.cause, BaseException):
        cause = cause.cause
    if isinstance(cause, BandsearchError | OSError):
        return cause
    words = str(cause)
    # Ray's watch over the memory has an error of its own.
    told = isinstance(cause, RuntimeError) and any(each in words for each in NO_MEMORY)
    if told or isinstance(cause, MemoryError | exceptions.OutOfMemoryError):
        return LostEngineError(f"An engine ran out of memory ({_reason(words)}).", _REMEDY)
    if isinstance(cause, RuntimeError) and "CUDA error" in words:
        return LostEngineError(f"The accelerator of an engine failed ({_reason(words)}).", "Look at `nvidia-smi`.")
    # Ray puts a plain RayError where a cause does not pickle.
    if isinstance(cause, exceptions.RayError) and type(cause) is not exceptions.RayError:
        # The last of its lines says why.
        *_, last = words.strip().splitlines() or [""]
        return LostEngineError(f"An engine died ({_reason(last)}).", "Look for a kill for lack of memory (`dmesg`).")
    return error


def _reason(words: str) -> str:
    """The first sentence of what a library says, without what Ray puts before it."""
    line = next((line.strip() for line in words.splitlines() if line.strip()), "no reason given")
    return line.rpartition("exit detail: ")[2].split(". ")[0].rstrip(".")
