"""The final training: the best point is kept, divergence is met with a lower rate, and it goes on where it stopped."""

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bandsearch.engine.failures import DivergedError, LostEngineError, OutOfMemoryError
from bandsearch.engine.team import Team
from bandsearch.run.retrain import Training, best_checkpoint, retrain
from bandsearch.values.band import Band
from bandsearch.values.candidate import Candidate
from bandsearch.values.errors import AdapterError
from bandsearch.values.evaluation import Arm
from bandsearch.values.fidelity import Fidelity
from bandsearch.values.progress import Listener, Update, silent
from bandsearch.values.trial import Point

FIDELITY = Fidelity(steps=80, batch_size=8, seed=0)


class ScriptedPool:
    """One engine whose validation loss is `loss(rate, steps)`; None diverges. Checkpoints hold their rate and steps."""

    size = 1

    def __init__(self, loss: Callable[[float, int], float | None], reach: int = 1000) -> None:
        self.loss, self.reach = loss, reach
        self.rates: list[float] = []
        self.rate, self.steps = 0.0, 0

    def submit(self, index: int, method: str, *args: Any) -> Any:
        return lambda: getattr(self, method)(*args)

    def get(self, reference: Any) -> Any:
        return reference()

    def get_all(self, references: list[Any]) -> list[Any]:
        return [reference() for reference in references]

    def admit(self, candidate: Candidate, fidelity: Fidelity) -> str:
        self.rate, self.steps = candidate.learning_rate, 0
        self.rates.append(self.rate)
        return "0"

    def advance(self, session: str, steps: int, deadline: float) -> Point:
        self.steps = min(steps, self.reach)
        loss = self.loss(self.rate, self.steps)
        if loss is None:
            raise DivergedError("It diverged.")
        return Point(steps=self.steps, loss=loss, seconds=1.0)

    def checkpoint(self, session: str, path: Path) -> None:
        path.write_text(json.dumps([self.rate, self.steps]))

    def restore(self, path: Path) -> str:
        self.rate, self.steps = json.loads(path.read_text())
        return "0"

    def evict(self, session: str) -> None:
        pass


def candidate(rate: float) -> Candidate:
    return Candidate(bands=(Band(start=1, stop=3),), rank=4, alpha=8, targets=("all",), learning_rate=rate)


def train(
    pool: ScriptedPool,
    folder: Path,
    rate: float = 0.09,
    stop: Callable[[], bool] = lambda: False,
    listen: Listener = silent,
) -> tuple[Training, list[Any]]:
    done = retrain([Team(pool, [0])], {"winner": candidate(rate)}, FIDELITY, folder, lambda: 100.0, listen, stop)  # type: ignore[arg-type]
    best = best_checkpoint(folder, candidate(rate))
    return done["winner"], json.loads(best.read_text()) if best.exists() else []


class Heard:
    """`announced` without the readings on the way."""

    def __init__(self) -> None:
        self.announced: list[str] = []

    def __call__(self, update: Update) -> None:
        if update.done is None:
            self.announced.append(update.message)


def test_the_best_point_is_kept_not_the_last(tmp_path: Path) -> None:
    heard = Heard()
    training, best = train(ScriptedPool(lambda rate, steps: abs(steps - 50) / 100), tmp_path, listen=heard)
    assert training.complete
    assert heard.announced == []
    assert [point.steps for point in training.points] == list(range(10, 81, 10))
    assert (training.best_steps, training.best_loss) == (50, 0.0)
    assert best == [0.09, 50]


def test_a_rate_that_diverges_at_once_is_lowered_until_it_does_not(tmp_path: Path) -> None:
    pool, heard = ScriptedPool(lambda rate, steps: 1 / steps if rate < 0.02 else None), Heard()
    training, _ = train(pool, tmp_path, listen=heard)
    assert pool.rates == pytest.approx([0.09, 0.03, 0.01])
    assert training.candidate.learning_rate == pytest.approx(0.01)
    assert training.complete
    assert heard.announced == [
        "winner: rate 0.09 diverged; it begins again at 0.03",
        "winner: rate 0.03 diverged; it begins again at 0.01",
    ]
    came = training.came_of(candidate(0.09))
    assert (came.candidate, came.learning_rate) == (candidate(0.09), pytest.approx(0.01))
    assert (came.steps, came.kept_step) == (80, 80)


def test_of_two_rates_one_that_diverges_is_not_lowered_to_the_other(tmp_path: Path) -> None:
    """0.03 is all but 0.028, which is trained already."""
    pools = [ScriptedPool(lambda rate, steps: 1 / steps if rate < 0.05 else None) for _ in range(2)]
    arms = {Arm.WINNER: candidate(0.09), Arm.FULL_DEPTH: candidate(0.028)}
    said: list[str] = []
    done = retrain(
        [Team(pool, [0]) for pool in pools],  # type: ignore[arg-type]
        arms,
        FIDELITY,
        tmp_path,
        lambda: 100.0,
        lambda update: said.append(update.message),
        lambda: False,
    )
    assert pools[0].rates == pytest.approx([0.09, 0.01])
    assert [each.candidate.learning_rate for each in done.values()] == pytest.approx([0.01, 0.028])
    # Both are full depth, so they go by their rates.
    assert {line.partition(":")[0] for line in said} == {"rate 0.09", "rate 0.01", "rate 0.028"}


def test_data_on_which_every_rate_diverges_end_in_words(tmp_path: Path) -> None:
    pool = ScriptedPool(lambda rate, steps: None)
    with pytest.raises(AdapterError, match="at 3 higher rates"):
        train(pool, tmp_path)
    assert len(pool.rates) == 4


def test_divergence_later_on_hands_over_the_best_so_far(tmp_path: Path) -> None:
    heard = Heard()
    pool = ScriptedPool(lambda rate, steps: abs(steps - 20) + 1 if steps < 35 else None)
    training, best = train(pool, tmp_path, listen=heard)
    assert training.complete
    assert best == [0.09, 20]
    assert heard.announced == ["winner: it diverged, so it ends at step 30 of 80; the adapter of step 20 is kept"]
    came = training.came_of(candidate(0.09))
    assert (came.learning_rate, came.steps, came.kept_step) == (0.09, 30, 20)
    # Gone on with, it has ended already.
    again = Heard()
    assert train(pool, tmp_path, listen=again)[0] == training
    assert again.announced == []


def test_without_memory_to_go_on_it_waits_for_a_better_day(tmp_path: Path) -> None:
    """What others have taken of a device they may give back; half of a training is not to pass for all of it."""

    class Full(ScriptedPool):
        def restore(self, path: Path) -> str:
            raise OutOfMemoryError("One more adapter does not fit.")

    asked = iter([False, True])
    first, _ = train(ScriptedPool(lambda rate, steps: 1 / steps), tmp_path, stop=lambda: next(asked, True))
    assert not first.complete
    with pytest.raises(LostEngineError, match="One more adapter does not fit"):
        train(Full(lambda rate, steps: 1 / steps), tmp_path)
    training, _ = train(ScriptedPool(lambda rate, steps: 1 / steps), tmp_path)
    assert training.complete
    assert training.points[-1].steps > first.points[-1].steps


def test_a_deadline_ends_it_at_the_last_validation(tmp_path: Path) -> None:
    heard = Heard()
    training, best = train(ScriptedPool(lambda rate, steps: 1 / steps, reach=44), tmp_path, listen=heard)
    assert training.complete
    assert heard.announced == ["winner: time is up, so it ends at step 40 of 80; the adapter of step 40 is kept"]
    assert training.points[-1].steps == 40
    assert best == [0.09, 40]


def test_a_deadline_before_the_first_validation_still_leaves_an_adapter(tmp_path: Path) -> None:
    training, best = train(ScriptedPool(lambda rate, steps: 1 / steps, reach=4), tmp_path)
    assert training.complete
    assert best == [0.09, 4]


def test_a_deadline_ends_all_arms_on_equal_steps(tmp_path: Path) -> None:
    """The engine holds a session of each; the slower one sets the pace."""
    slow, fast = candidate(0.01), candidate(0.02)

    class TwoArms(ScriptedPool):
        def admit(self, candidate: Candidate, fidelity: Fidelity) -> str:
            return str(candidate.learning_rate)

        def advance(self, session: str, steps: int, deadline: float) -> Point:
            return Point(steps=min(steps, 33 if session == "0.01" else 1000), loss=1 / steps, seconds=1.0)

    pool = TwoArms(lambda rate, steps: 1.0)
    done = retrain(
        [Team(pool, [0]), Team(pool, [0])],  # type: ignore[arg-type]
        {"winner": slow, "full_depth": fast},
        FIDELITY,
        tmp_path,
        lambda: 100.0,
        silent,
        lambda: False,
    )
    assert {name: training.points[-1].steps for name, training in done.items()} == {"winner": 30, "full_depth": 30}
    assert all(training.complete for training in done.values())


def test_a_checkpoint_is_on_disk_before_it_takes_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    replaced: dict[str, int] = {}
    to_disk, replace = os.fsync, os.replace

    def sync(file: int) -> None:
        flushed.append(os.fstat(file).st_ino)
        to_disk(file)

    def put(fresh: str, path: Path) -> None:
        assert os.stat(fresh).st_ino in flushed
        replaced[path.name] = replaced.get(path.name, 0) + 1
        replace(fresh, path)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", put)
    train(ScriptedPool(lambda rate, steps: 1 / steps), tmp_path)
    assert replaced == {"best.safetensors": 8, "training.json": 8}


def test_stopped_and_gone_on_it_is_the_same_training(tmp_path: Path) -> None:
    def loss(rate: float, steps: int) -> float | None:
        return abs(steps - 50) / 100 if rate < 0.02 else None

    whole, best = train(ScriptedPool(loss), tmp_path / "whole")
    asked = iter([False] * 6)
    part, _ = train(ScriptedPool(loss), tmp_path / "part", stop=lambda: next(asked, True))
    assert not part.complete
    assert part.points == whole.points[: len(part.points)]
    # Another process; the rate that was lowered stays so.
    assert train(ScriptedPool(loss), tmp_path / "part") == (whole, best)
    assert train(ScriptedPool(lambda rate, steps: None), tmp_path / "part") == (whole, best)


class Halting(ScriptedPool):
    """Is asked to stop when it has trained for `steps` steps in all, and trains on until it is halted."""

    def __init__(self, loss: Callable[[float, int], float | None], steps: int) -> None:
        super().__init__(loss)
        self.stop_at, self.halted = steps, threading.Event()

    def submit(self, index: int, method: str, *args: Any) -> Any:
        return self.halted.set() if method == "halt" else super().submit(index, method, *args)

    def advance(self, session: str, steps: int, deadline: float) -> Point:
        if steps > self.stop_at:
            self.reach = self.stop_at
            assert self.halted.wait(60)
        return super().advance(session, steps, deadline)

    def stop(self) -> bool:
        return self.reach == self.stop_at


@pytest.mark.parametrize("steps", [4, 44])
def test_stopped_between_two_validations_it_goes_on_from_there(tmp_path: Path, steps: int) -> None:
    def loss(rate: float, steps: int) -> float | None:
        return abs(steps - 50) / 100 if rate < 0.02 else None

    whole, best = train(ScriptedPool(loss), tmp_path / "whole")
    pool = Halting(loss, steps)
    part, _ = train(pool, tmp_path / "part", stop=pool.stop)
    assert not part.complete
    assert part.points == whole.points[: steps // 10]
    resumed = ScriptedPool(loss)
    restored: list[list[float]] = []
    restore = resumed.restore
    resumed.restore = lambda path: restored.append(json.loads(path.read_text())) or restore(path)  # type: ignore[method-assign, func-returns-value]
    assert train(resumed, tmp_path / "part") == (whole, best)
    assert restored == [[pytest.approx(0.01), steps]]
    assert resumed.rates == []


def test_a_rate_that_diverges_after_a_stop_is_lowered_and_begun_anew(tmp_path: Path) -> None:
    pool = Halting(lambda rate, steps: 1.0, 4)
    train(pool, tmp_path, stop=pool.stop)
    resumed = ScriptedPool(lambda rate, steps: 1 / steps if rate < 0.04 else None)
    training, best = train(resumed, tmp_path)
    assert resumed.rates == pytest.approx([0.03])
    assert training.candidate.learning_rate == best[0] == pytest.approx(0.03)
    assert training.complete


def test_stopped_before_anything_was_trained_leaves_no_record(tmp_path: Path) -> None:
    training, best = train(ScriptedPool(lambda rate, steps: 1.0), tmp_path, stop=lambda: True)
    assert not training.complete
    assert best == []
