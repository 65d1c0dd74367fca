"""A team: the engines that train one candidate to the end, all as one, or one by itself."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from ray.exceptions import RayTaskError

from bandsearch.engine.failures import LostEngineError, OutOfMemoryError
from bandsearch.engine.handles import EngineHandles
from bandsearch.engine.measure import seconds_together
from bandsearch.values.candidate import Candidate
from bandsearch.values.fidelity import Fidelity
from bandsearch.values.trial import Point


def form_teams(pool: EngineHandles, count: int, size: int) -> list[Team]:
    """So many teams of `size` engines each, or of one where there are not as many or they cannot train together. Teams
    beyond the engines there are share them."""
    if size > 1 and count * size <= pool.size:
        teams = [Team(pool, range(first, first + size)) for first in range(0, count * size, size)]
        with ThreadPoolExecutor(count) as threads:
            if all(list(threads.map(Team.join, teams))):
                return teams
            list(threads.map(Team.part, teams))
    return [Team(pool, [index % pool.size]) for index in range(count)]


class Team:
    """Holds one session, the same on each of its engines. Raises what an engine raises."""

    def __init__(self, pool: EngineHandles, engines: Sequence[int]) -> None:
        self._pool, self._engines = pool, tuple(engines)
        self._sessions: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        return len(self._engines)

    def join(self) -> bool:
        """Let the engines meet. False where they cannot, or where a step that they share is not the step of one."""
        # The folder lasts as long as they may look for each other.
        self._meeting = tempfile.TemporaryDirectory(prefix="bs-meet-", ignore_cleanup_errors=True)
        store, size = Path(self._meeting.name) / "store", self.size
        try:
            return all(self._ask("join", ((store, rank, size) for rank in range(size))))
        except (RayTaskError, LostEngineError, OutOfMemoryError):
            # An engine that is really lost says so when it is asked for anything else.
            return False

    def part(self) -> None:
        """Let the engines go their own ways. NCCL looks at the place where they met as long as they are together."""
        if self.size > 1:
            # An engine that is really lost says so when it is asked for anything else.
            with suppress(RayTaskError, LostEngineError):
                self._ask_all("part")
            self._meeting.cleanup()

    def begin(self, candidate: Candidate, fidelity: Fidelity) -> None:
        self._take(self._ask_all("admit", candidate, fidelity))

    def restore(self, path: Path) -> None:
        self._take(self._ask_all("restore", path))

    def advance(self, steps: int, deadline: float | None) -> Point:
        """As Engine.advance."""
        point, *_ = self._ask("advance", ((session, steps, deadline) for session in self._sessions))
        return cast(Point, point)

    def halt(self) -> None:
        """End an advance that another thread waits for as at its deadline: all engines stop after the same step. Does
        nothing where none has begun, so it may have to be said again."""
        for engine, session in zip(self._engines, self._sessions, strict=False):
            self._pool.submit(engine, "halt", session)

    def time_step(self, batch_size: int, alone: float) -> float:
        """Seconds of a step of full depth that they share; `alone`: of one engine by itself."""
        timed = [self._pool.apply_async(engine, seconds_together, batch_size, alone) for engine in self._engines]
        return float(max(self._pool.get_all(timed)))

    def checkpoint(self, path: Path) -> None:
        self._pool.get(self._pool.submit(self._engines[0], "checkpoint", self._sessions[0], path))

    def evict(self) -> None:
        self._ask("evict", ((session,) for session in self._sessions))
        self._sessions = ()

    def _take(self, sessions: Sequence[Any]) -> None:
        self._sessions = tuple(map(str, sessions))
        if self.size > 1:
            self._ask("replicate", ((session,) for session in self._sessions))

    def _ask_all(self, method: str, *arguments: Any) -> list[Any]:
        return self._ask(method, (arguments for _ in self._engines))

    def _ask(self, method: str, arguments: Iterable[tuple[Any, ...]]) -> list[Any]:
        """Of every engine at once, with arguments of its own. Who fails ends the waiting for the others."""
        references = [
            self._pool.submit(engine, method, *own) for engine, own in zip(self._engines, arguments, strict=False)
        ]
        return self._pool.get_all(references)
