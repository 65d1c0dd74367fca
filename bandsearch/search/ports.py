"""What the search needs from other rooms: engines that train, and records that keep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from bandsearch.values.trial import TrialResult


class Pool(Protocol):
    """Engines by index. `bandsearch.engine.pool.EnginePool` is one; it travels to other processes by pickling."""

    @property
    def size(self) -> int: ...

    def submit(self, index: int, method: str, *args: Any) -> Any:
        """Start `method` of engine `index`; returns at once."""

    def apply(self, index: int, work: Callable[..., Any], *args: Any) -> Any:
        """Run `work(engine, *args)` where engine `index` is, and wait for it."""

    def get(self, reference: Any) -> Any:
        """Wait for what `submit` started. Raises what the method raised."""


class Records(Protocol):
    """Finished trainings. `append` returns once the result is on disk."""

    def append(self, result: TrialResult) -> None: ...

    def results(self) -> list[TrialResult]: ...
