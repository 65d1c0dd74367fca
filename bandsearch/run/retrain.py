"""The full training of the winner and of the baseline it has to beat: same steps, same examples, same schedule."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

from bandsearch.engine.failures import DivergedError, LostEngineError, OutOfMemoryError
from bandsearch.engine.team import Team
from bandsearch.rundir import replacing, write_atomically
from bandsearch.search.rates import RETREAT
from bandsearch.values.candidate import Candidate, rates_differ
from bandsearch.values.errors import AdapterError
from bandsearch.values.evaluation import Arm, Trained
from bandsearch.values.fidelity import Fidelity
from bandsearch.values.plan import VALIDATIONS
from bandsearch.values.progress import Listener, Update
from bandsearch.values.trial import Point
from bandsearch.values.value import Value

RETRIES = 3
# How often it is asked whether to stop while engines train, seconds.
ASKING = 0.2


class Training(Value):
    """A full training as far as it got. `best_steps` is where validation loss was lowest; that adapter is kept."""

    arm: Arm
    candidate: Candidate
    points: tuple[Point, ...]
    best_steps: int
    complete: bool

    @property
    def best_loss(self) -> float:
        return min(point.loss for point in self.points)

    def came_of(self, chosen: Candidate) -> Trained:
        """In short, for who trained `chosen`."""
        return Trained(
            candidate=chosen,
            learning_rate=self.candidate.learning_rate,
            steps=self.points[-1].steps,
            kept_step=self.best_steps,
        )


def best_checkpoint(folder: Path, candidate: Candidate) -> Path:
    return folder / candidate.identity / "best.safetensors"


def retrain(
    teams: Sequence[Team],
    arms: dict[Arm, Candidate],
    fidelity: Fidelity,
    folder: Path,
    wall_left: Callable[[], float],
    listen: Listener,
    stop: Callable[[], bool],
) -> dict[Arm, Training]:
    """Train every arm on its team from one validation to the next, side by side, to the end or to the deadline.
    Resumable.

    Where time runs out between two validations, no arm keeps what lies behind the last one: equal steps are compared.
    Each candidate leaves `<its identity>/best.safetensors`, a checkpoint of the engine, and `training.json` under
    `folder`. Returns early, with trainings that are not `complete`, when `stop()` is true: after the step under way,
    from where it goes on.
    """
    runs = [
        _Arm(
            team,
            name,
            candidate,
            fidelity,
            best_checkpoint(folder, candidate).parent,
            listen,
            [other.learning_rate for other in arms.values() if other != candidate and other.form == candidate.form],
        )
        for team, (name, candidate) in zip(teams, arms.items(), strict=True)
    ]
    with ThreadPoolExecutor(len(runs)) as threads:
        for goal in _goals(fidelity.steps):
            behind = [run for run in runs if not run.complete and run.steps < goal]
            if stop():
                break
            training = [threads.submit(run.train, goal, wall_left) for run in behind]
            while wait(training, ASKING).not_done:
                if stop():
                    for run in behind:
                        run.halt()
            for each in training:
                each.result()
            reached = all(run.complete or run.pending is None or run.pending.steps >= goal for run in behind)
            if not reached and stop():
                for run in behind:
                    run.save()
                break
            for run in behind:
                if (reached or not run.points) and run.keep():
                    run.tell_step()
                if not reached:
                    run.end("time is up")
        for run in runs:
            run.leave()
    return {run.name: run.training() for run in runs}


class _Arm:
    """One training under way. `pending` is a reading that is not kept yet; at `other_rates` the same is trained
    beside it."""

    def __init__(
        self,
        team: Team,
        name: Arm,
        candidate: Candidate,
        fidelity: Fidelity,
        folder: Path,
        listen: Listener,
        other_rates: Sequence[float],
    ) -> None:
        self._team, self.name, self._listen, self._other_rates = team, name, listen, other_rates
        self._candidate, self._fidelity, self._folder = candidate, fidelity, folder
        self.points: list[Point] = []
        self.pending: Point | None = None
        self.complete = False
        self._holds_session = False
        self._record, self._last = folder / "training.json", folder / "last.safetensors"
        folder.mkdir(parents=True, exist_ok=True)
        if self._record.exists():
            known = Training.model_validate_json(self._record.read_text(encoding="utf-8"))
            self._candidate, self.points, self.complete = known.candidate, list(known.points), known.complete

    @property
    def steps(self) -> int:
        return self.points[-1].steps if self.points else 0

    def training(self) -> Training:
        best = min(self.points, key=lambda point: point.loss, default=None)
        return Training(
            arm=self.name,
            candidate=self._candidate,
            points=tuple(self.points),
            best_steps=best.steps if best else 0,
            complete=self.complete,
        )

    def train(self, goal: int, wall_left: Callable[[], float]) -> None:
        """Train up to step `goal` or to the deadline; the reading is pending then. Divergence ends it."""
        for retries in range(RETRIES + 1):
            self._begin()
            try:
                self.pending = self._team.advance(goal, wall_left())
            except (DivergedError, OutOfMemoryError) as error:
                self._holds_session = False
                if self.points:
                    # The best that was kept is an adapter; a run must end with one.
                    self.end("it diverged" if isinstance(error, DivergedError) else "memory ran out")
                    return
                if isinstance(error, OutOfMemoryError):
                    raise
                if retries == RETRIES:
                    raise AdapterError(
                        f"The final training of {self._candidate} diverged, as it did at {retries} higher rates.",
                        "Look at the data (`bandsearch data`), or give a narrower learning rate in the search space.",
                    ) from None
                # A rate that was fine for a proxy can be too high for the whole length.
                rate = self._candidate.learning_rate
                lower = rate / RETREAT
                while not all(rates_differ(lower, other) for other in self._other_rates):
                    lower /= RETREAT
                self._tell(f"rate {rate:.2g} diverged; it begins again at {lower:.2g}")
                self._candidate = self._candidate.model_copy(update={"learning_rate": lower})
                self._last.unlink(missing_ok=True)
                self._write()
            else:
                return

    def halt(self) -> None:
        self._team.halt()

    def save(self) -> None:
        """Put on disk from where it goes on; what is pending is no reading that counts."""
        if self.pending is not None:
            self.pending = None
            self._team.checkpoint(self._last)

    def keep(self) -> bool:
        """Put the pending reading, its checkpoint and the record on disk; whether there was one."""
        if self.pending is None:
            return False
        point, self.pending = self.pending, None
        self.points.append(point)
        self._team.checkpoint(self._last)
        if point is min(self.points, key=lambda each: each.loss):
            _copy(self._last, self._folder / "best.safetensors")
        self.complete = point.steps >= self._fidelity.steps
        self._write()
        return True

    def end(self, why: str) -> None:
        """No further, and `why`; what is pending is forgotten."""
        self.pending = None
        if not self.complete:
            self.complete = True
            kept = f"the adapter of step {self.training().best_steps} is kept"
            self._tell(f"{why}, so it ends at step {self.steps} of {self._fidelity.steps}; {kept}")
        self._write()

    def leave(self) -> None:
        if self._holds_session:
            self._team.evict()

    def tell_step(self) -> None:
        words = f"step {self.steps}/{self._fidelity.steps}, validation loss {self.points[-1].loss:.4f}"
        self._tell(words, done=self.steps / self._fidelity.steps)

    def _tell(self, words: str, done: float | None = None) -> None:
        name = f"rate {self._candidate.learning_rate:.2g}" if self._other_rates else self.name.replace("_", " ")
        self._listen(Update(stage="retrain", message=f"{name}: {words}", done=done))

    def _write(self) -> None:
        write_atomically(self._record, self.training().model_dump_json(indent=2))

    def _begin(self) -> None:
        """From the last checkpoint, or from the start, unless it has begun. Raises LostEngineError where a device has
        no room to go on: what others have taken of it they may give back."""
        if self._holds_session:
            return
        try:
            if self._last.exists():
                self._team.restore(self._last)
            else:
                self._team.begin(self._candidate, self._fidelity)
        except OutOfMemoryError as error:
            if not self._last.exists():
                raise
            raise LostEngineError(error.message, "End what else uses the device.") from error
        self._holds_session = True


def _goals(steps: int) -> list[int]:
    """Where a training of `steps` steps validates."""
    return [round(steps * goal / VALIDATIONS) for goal in range(1, VALIDATIONS + 1)]


def _copy(source: Path, destination: Path) -> None:
    """Replace `destination` by a copy of `source`, on disk before any record says so."""
    with source.open("rb") as old, replacing(destination) as new:
        shutil.copyfileobj(old, new)
