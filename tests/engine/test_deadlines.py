"""A step that would end behind a deadline is not begun."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from bandsearch.engine import conductor, engine
from bandsearch.engine.conductor import Conductor
from bandsearch.engine.engine import Engine
from bandsearch.values.trial import Point

SECONDS = 19.0


class Slow:
    """An engine on a clock of its own whose steps take 19 seconds."""

    def __init__(self) -> None:
        self.now, self.step = 0.0, 0
        self.fidelity = SimpleNamespace(steps=100)
        self._sessions = {"0": self}

    def holds(self, session: str) -> bool:
        return True

    def progress(self, session: str) -> tuple[int, int]:
        return self.step, 100

    def next_length(self, session: str) -> int:
        return 1

    def agree(self, *asked: Any) -> bool:
        """Asked as an engine about a session, and as a session: it has no replicas."""
        return bool(asked[-1])

    def train_together(self, sessions: list[str]) -> dict[str, Exception]:
        self.now, self.step = self.now + SECONDS, self.step + 1
        return {}

    def validate_together(self, sessions: list[str]) -> dict[str, Point]:
        return {name: Point(steps=self.step, loss=1.0, seconds=self.now) for name in sessions}


def _conducted(slow: Slow, deadline: float) -> Point:
    async def run(work: Callable[..., Any], *args: Any) -> Any:
        return work(*args)

    async def main() -> Point:
        return await Conductor(slow, 1, run).advance("0", 100, deadline)  # type: ignore[arg-type]

    return asyncio.run(main())


def _alone(slow: Slow, deadline: float) -> Point:
    return Engine.advance(slow, "0", 100, deadline)  # type: ignore[arg-type]


@pytest.mark.parametrize("advance", [_conducted, _alone])
@pytest.mark.parametrize(("deadline", "steps"), [(0.0, 1), (30.0, 1), (40.0, 2), (57.0, 3), (75.0, 3)])
def test_no_step_ends_behind_the_deadline_but_the_first(
    monkeypatch: pytest.MonkeyPatch, advance: Callable[[Slow, float], Point], deadline: float, steps: int
) -> None:
    slow = Slow()
    for module in (conductor, engine):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: slow.now))
    assert advance(slow, deadline).steps == steps


def test_halted_it_ends_with_the_step_under_way() -> None:
    slow = Slow()

    async def main() -> Point:
        # What is not under way is not halted beforehand.
        at_work.halt("0")
        return await at_work.advance("0", 100)

    async def run(work: Callable[..., Any], *args: Any) -> Any:
        found = work(*args)
        if slow.step == 3:
            at_work.halt("0")
            at_work.halt("another")
        return found

    at_work = Conductor(slow, 1, run)  # type: ignore[arg-type]
    assert asyncio.run(main()).steps == 3
