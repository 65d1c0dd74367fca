"""Handles of running engines: all that a process needs to ask them for work. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayTaskError

from bandsearch.values.errors import BandsearchError

Result = TypeVar("Result")


class EngineHandles:
    """Engines by index. Pickles, so that a proxy in another process can use it."""

    def __init__(self, actors: Sequence[ActorHandle]) -> None:
        self._actors = list(actors)

    @property
    def size(self) -> int:
        return len(self._actors)

    def submit(self, index: int, method: str, *args: Any) -> Any:
        """Start `method` of engine `index`. Sessions advanced at the same time train together where that pays."""
        if method == "advance":
            return self._actors[index].advance.remote(*args)
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
