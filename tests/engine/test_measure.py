"""What a step costs on average, from a few that differ in their lengths."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from bandsearch.engine import measure
from bandsearch.engine.engine import Engine
from bandsearch.values.candidate import Candidate
from bandsearch.values.fidelity import Fidelity


class Clockwork:
    """An engine of 12 layers whose steps take a hundredth of a second per token of their longest sequence."""

    def __init__(self, lengths: list[int], mean: float) -> None:
        self.layout = SimpleNamespace(layer_count=12)
        self.now, self._lengths, self._mean = 0.0, lengths, mean

    def admit(self, candidate: Candidate, fidelity: Fidelity) -> str:
        assert fidelity.steps <= len(self._lengths)
        return "0"

    def evict(self, session: str) -> None:
        pass

    def next_length(self, session: str) -> int:
        return self._lengths[0]

    def mean_length(self, batch_size: int) -> float:
        return self._mean

    def train_together(self, sessions: list[str]) -> dict[str, Exception]:
        self.now += self._lengths.pop(0) / 100
        return {}


def test_a_step_costs_what_one_of_average_length_does(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Clockwork([7, 300, 20, 40], mean=100)
    monkeypatch.setattr(measure.time, "monotonic", lambda: engine.now)
    assert measure._seconds_per_step(engine, 8) == pytest.approx(1.0)  # type: ignore[arg-type]


def test_the_mean_length_is_that_of_an_epochs_steps(load: Callable[[str], Engine]) -> None:
    engine = load("llama")
    steps = len(engine.dataset.train) // 4
    candidate = measure._full_depth(engine)
    session = engine.admit(candidate, Fidelity(steps=steps, batch_size=4, seed=0))
    lengths = []
    for step in range(steps):
        engine._sessions[session].step = step
        lengths.append(engine.next_length(session))
    assert engine.mean_length(4) == pytest.approx(sum(lengths) / steps)
    assert min(lengths) < engine.mean_length(4) < max(lengths)


def test_where_steps_take_long_few_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of 15 minutes with steps of 19 s had spent three and a half of them before it had a plan."""
    engine = Clockwork([1900] * 4, mean=1900)
    monkeypatch.setattr(measure.time, "monotonic", lambda: engine.now)
    assert measure._seconds_per_step(engine, 8) == pytest.approx(19.0)  # type: ignore[arg-type]
    assert engine.now == pytest.approx(2 * 19.0)


@pytest.mark.parametrize(("per_token", "asked"), [(0.0001, [4, 64]), (0.1, [4])])
def test_an_example_costs_what_one_of_average_length_does(
    monkeypatch: pytest.MonkeyPatch, per_token: float, asked: list[int]
) -> None:
    lengths = [10] * 8 + [30] * 72
    now, counts = [0.0], []

    def work(count: int) -> None:
        counts.append(count)
        now[0] += per_token * sum(lengths[:count])

    monkeypatch.setattr(measure.time, "monotonic", lambda: now[0])
    assert measure.seconds_each(work, lengths, 64) == pytest.approx(28 * per_token)
    assert counts == asked
