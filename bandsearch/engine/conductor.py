"""The conductor: who of the sessions that want to go on takes the next step together with whom."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from bandsearch.engine.engine import Engine
from bandsearch.values.trial import Point

# Sequences this much longer than the first session's may share its pass: what that pads is less than a pass saves.
ALIKE = 1.25

Run = Callable[..., Awaitable[Any]]


@dataclass(eq=False)
class _Request:
    session: str
    steps: int
    deadline: float | None
    started: float
    answer: asyncio.Future[Point]
    halted: bool = False


class Conductor:
    """Lets any number of callers advance sessions of one engine at the same time.

    Sessions that have done the fewest steps go first, so that those behind catch up with those ahead and then share
    their batches, and a comparison at a rung waits for nobody twice. At most `packing` sessions go through the base
    together; one that has reached its goal makes room for the next at once. `run(work, *args)` runs blocking work
    where the engine lives, one piece at a time, first come, first served.
    """

    def __init__(self, engine: Engine, packing: int, run: Run) -> None:
        self._engine, self.packing, self._run = engine, packing, run
        self._requests: list[_Request] = []
        self._driver: asyncio.Task[None] | None = None
        self._last_step = 0.0

    async def advance(self, session: str, steps: int, deadline: float | None = None) -> Point:
        """As Engine.advance."""
        answer: asyncio.Future[Point] = asyncio.get_running_loop().create_future()
        self._requests.append(_Request(session, steps, deadline, time.monotonic(), answer))
        if self._driver is None or self._driver.done():
            self._driver = asyncio.create_task(self._drive())
        return await answer

    def halt(self, session: str) -> None:
        """Let the session's advance end with the step under way, as at its deadline; without one it does nothing."""
        for request in self._requests:
            if request.session == session:
                request.halted = True

    async def _drive(self) -> None:
        while self._requests:
            requests = list(self._requests)
            try:
                answers = await self._run(self._turn, requests)
            except Exception as error:
                # A bug ends everyone who waits, by its own name.
                answers = {id(request): error for request in requests}
            self._requests = [request for request in self._requests if id(request) not in answers]
            for request in requests:
                if id(request) in answers and not request.answer.done():
                    answer = answers[id(request)]
                    if isinstance(answer, Point):
                        request.answer.set_result(answer)
                    else:
                        request.answer.set_exception(answer)

    def _turn(self, requests: list[_Request]) -> dict[int, Point | Exception]:
        """Validate who has arrived, or else take one step with the next pack; the answers found, by request."""
        # Evicted while it waited: that concerns its own caller alone.
        gone = [request for request in requests if not self._engine.holds(request.session)]
        if gone:
            return {id(each): KeyError(f"session {each.session} was evicted") for each in gone}
        arrived = [request for request in requests if self._has_arrived(request)]
        if arrived:
            points = self._engine.validate_together([each.session for each in arrived[: self.packing]])
            return {id(each): points[each.session] for each in arrived[: self.packing]}
        pack = self._next_pack(requests)
        started = time.monotonic()
        failures = self._engine.train_together([each.session for each in pack])
        self._last_step = time.monotonic() - started
        return {id(each): failures[each.session] for each in pack if each.session in failures}

    def _has_arrived(self, request: _Request) -> bool:
        done, allowed = self._engine.progress(request.session)
        if done >= min(request.steps, allowed):
            return True
        # A step that would end behind the deadline is not begun: on a large model it may take minutes.
        ends = time.monotonic() - request.started + self._last_step
        late = request.deadline is not None and ends > request.deadline
        return done > 0 and self._engine.agree(request.session, late or request.halted)

    def _next_pack(self, requests: list[_Request]) -> list[_Request]:
        queue = sorted(requests, key=lambda request: self._engine.progress(request.session)[0])
        pack = [queue[0]]
        length = self._engine.next_length(queue[0].session)
        for request in queue[1:]:
            if len(pack) == self.packing:
                break
            other = self._engine.next_length(request.session)
            if max(length, other) <= ALIKE * min(length, other):
                pack.append(request)
        return pack
