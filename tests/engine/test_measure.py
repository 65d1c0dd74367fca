"""What a step costs on average, from a few that differ in their lengths."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from bandsearch.engine import measure
from bandsearch.engine.engine import Engine
from bandsearch.engine.failures import OutOfMemoryError
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


@pytest.mark.parametrize(
    ("taken", "usual"),
    [([9.0, 1.0, 1.02], 1.01), ([9.0, 1.0, 2.0, 1.1], 1.1)],
    ids=["two-alike", "a-third-where-they-are-not"],
)
def test_as_few_readings_are_taken_as_say_the_same(taken: list[float], usual: float) -> None:
    readings = iter([*taken, 5.0])
    assert measure._usual(lambda: next(readings)) == pytest.approx(usual)
    assert list(readings) == [5.0]


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


class Packer:
    """An engine whose steps of so many candidates take `seconds`, None: no memory, or `row` where they have one row."""

    def __init__(self, seconds: dict[int, float | None], row: float, packing: int | None = None) -> None:
        self.layout, self.levers = SimpleNamespace(layer_count=12), SimpleNamespace(packing=packing)
        self.now, self.asked, self._seconds, self._row = 0.0, set[int](), seconds, row
        self.rows: dict[str, int] = {}

    def admit(self, candidate: Candidate, fidelity: Fidelity) -> str:
        assert candidate.layers == tuple(range(6, 12))
        name = str(len(self.rows))
        self.rows[name] = fidelity.batch_size
        return name

    def evict(self, session: str) -> None:
        self.rows.pop(session, None)

    def train_together(self, sessions: list[str]) -> dict[str, Exception]:
        self.asked.add(len(sessions))
        seconds = self._row if self.rows[sessions[0]] == 1 else self._seconds[len(sessions)]
        if seconds is None:
            return {session: OutOfMemoryError("full") for session in sessions}
        self.now += seconds
        return {}


@pytest.mark.parametrize(
    ("seconds", "row", "packing", "share", "asked"),
    [
        pytest.param({1: 1.0, 2: 1.2, 4: 1.6, 8: 3.1}, 0.9, 4, 0.4, {1, 2, 4, 8}, id="to-where-it-pays-no-more"),
        pytest.param({1: 1.0, 2: 1.95}, 0.9, 1, 1.0, {1, 2}, id="less-than-is-worthwhile"),
        pytest.param({1: 1.0, 2: 1.1, 4: 1.3, 8: 1.7}, 0.9, 8, 1.7 / 8, {1, 2, 4, 8}, id="at-most-eight"),
        pytest.param({1: 1.0, 2: 1.2, 4: None}, 0.9, 2, 0.6, {1, 2, 4}, id="as-memory-has-room"),
        pytest.param({1: 1.0}, 0.125, 1, 1.0, {1}, id="all-time-goes-into-rows"),
    ],
)
def test_as_many_share_a_pass_as_are_cheaper_for_it(
    monkeypatch: pytest.MonkeyPatch,
    seconds: dict[int, float | None],
    row: float,
    packing: int,
    share: float,
    asked: set[int],
) -> None:
    engine = Packer(seconds, row)
    monkeypatch.setattr(measure.time, "monotonic", lambda: engine.now)
    assert measure.best_packing(engine, 8) == (packing, pytest.approx(share))  # type: ignore[arg-type]
    assert engine.asked == asked
    assert engine.rows == {}


def test_of_one_row_nothing_beside_it_is_known_and_packs_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Packer({}, 1.0)
    monkeypatch.setattr(measure.time, "monotonic", lambda: engine.now)
    assert measure.best_packing(engine, 1) == (8, pytest.approx(1 / 8))  # type: ignore[arg-type]


def test_as_many_share_a_pass_as_a_person_says(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Packer({1: 1.0, 3: 2.7}, 0.5, packing=3)
    monkeypatch.setattr(measure.time, "monotonic", lambda: engine.now)
    assert measure.best_packing(engine, 8) == (3, pytest.approx(0.9))  # type: ignore[arg-type]
    assert engine.asked == {1, 3}
