"""The full training of the winner and of the baseline it has to beat: same steps, same examples, same schedule."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bandsearch.engine.failures import DivergedError, OutOfMemoryError
from bandsearch.engine.pool import EnginePool
from bandsearch.rundir import write_atomically
from bandsearch.values.candidate import Candidate
from bandsearch.values.errors import AdapterError
from bandsearch.values.fidelity import Fidelity, Schedule
from bandsearch.values.plan import Plan
from bandsearch.values.progress import Listener, Update
from bandsearch.values.trial import Point
from bandsearch.values.value import Value

VALIDATIONS = 8
RETRIES = 3


class Training(Value):
    """A full training as far as it got. `best_steps` is where validation loss was lowest; that adapter is kept."""

    arm: str
    candidate: Candidate
    points: tuple[Point, ...]
    best_steps: int
    complete: bool

    @property
    def best_loss(self) -> float:
        return min(point.loss for point in self.points)


def full_fidelity(plan: Plan, seed: int) -> Fidelity:
    return Fidelity(
        steps=plan.full_steps,
        batch_size=plan.batch_size,
        seed=seed,
        schedule=Schedule.LINEAR,
        warmup_steps=min(10, plan.full_steps // 10),
        validation_examples=plan.validation_examples,
    )


def best_checkpoint(folder: Path, candidate: Candidate) -> Path:
    return folder / candidate.identity / "best.safetensors"


def retrain(
    pool: EnginePool,
    arms: dict[str, Candidate],
    fidelity: Fidelity,
    folder: Path,
    wall_left: Callable[[], float],
    listen: Listener,
    stop: Callable[[], bool],
) -> dict[str, Training]:
    """Train every arm to its end or to the deadline, side by side where there are engines. Resumable at checkpoints.

    Each candidate leaves `<its identity>/best.safetensors`, a checkpoint of the engine, and `training.json` under
    `folder`. Returns early, with trainings that are not `complete`, when `stop()` is true.
    """
    queues = [list(arms.items())[index :: pool.size] for index in range(min(pool.size, len(arms)))]

    def work(index: int) -> list[Training]:
        done = []
        for position, (arm, candidate) in enumerate(queues[index]):
            sharing = len(queues[index]) - position
            arm_left = _fixed_share(wall_left, sharing)
            done.append(
                _train(
                    pool,
                    index,
                    arm,
                    candidate,
                    fidelity,
                    best_checkpoint(folder, candidate).parent,
                    arm_left,
                    listen,
                    stop,
                )
            )
        return done

    with ThreadPoolExecutor(len(queues)) as threads:
        return {training.arm: training for done in threads.map(work, range(len(queues))) for training in done}


def _fixed_share(wall_left: Callable[[], float], sharing: int) -> Callable[[], float]:
    """The part of the time left that the first of `sharing` arms on one engine may use."""
    others = wall_left() * (sharing - 1) / sharing if sharing > 1 else 0.0
    return lambda: wall_left() - others


def _train(
    pool: EnginePool,
    index: int,
    arm: str,
    candidate: Candidate,
    fidelity: Fidelity,
    folder: Path,
    wall_left: Callable[[], float],
    listen: Listener,
    stop: Callable[[], bool],
) -> Training:
    def call(method: str, *args: object) -> Any:
        return pool.get(pool.submit(index, method, *args))

    folder.mkdir(parents=True, exist_ok=True)
    record = folder / "training.json"
    training = Training.model_validate_json(record.read_text(encoding="utf-8")) if record.exists() else None
    if training is not None and training.complete:
        return training
    points = list(training.points) if training else []
    if training is None:
        session = str(call("admit", candidate, fidelity))
    else:
        candidate = training.candidate
        session = str(call("restore", folder / "last.safetensors"))
    retries = 0
    while not (training and training.complete) and not stop():
        done = points[-1].steps if points else 0
        target = next(goal for goal in _goals(fidelity.steps) if goal > done)
        try:
            point = call("advance", session, target, wall_left())
        except (DivergedError, OutOfMemoryError) as error:
            if training is not None:
                # The best that was kept is an adapter; a run must end with one.
                training = training.model_copy(update={"complete": True})
                write_atomically(record, training.model_dump_json(indent=2))
                break
            if isinstance(error, OutOfMemoryError):
                raise
            if retries == RETRIES:
                raise AdapterError(
                    f"The final training of {candidate} diverged, as it did at {retries} higher rates.",
                    "Look at the data (`bandsearch data`), or give a narrower learning rate in the search space.",
                ) from None
            # A rate that was fine for a proxy can be too high for the whole length.
            retries += 1
            candidate = candidate.model_copy(update={"learning_rate": candidate.learning_rate / 3})
            session = str(call("admit", candidate, fidelity))
            continue
        points.append(point)
        call("checkpoint", session, folder / "last.safetensors")
        best = min(points, key=lambda p: p.loss)
        if best is point:
            _copy(folder / "last.safetensors", folder / "best.safetensors")
        training = Training(
            arm=arm,
            candidate=candidate,
            points=tuple(points),
            best_steps=best.steps,
            # Fewer steps than asked for: the deadline came first.
            complete=point.steps >= fidelity.steps or point.steps < target,
        )
        write_atomically(record, training.model_dump_json(indent=2))
        listen(
            Update(
                stage="retrain",
                message=f"{arm.replace('_', ' ')}: step {point.steps}/{fidelity.steps}, "
                f"validation loss {point.loss:.4f}",
                done=point.steps / fidelity.steps,
            )
        )
    call("evict", session)
    return training or Training(arm=arm, candidate=candidate, points=(), best_steps=0, complete=False)


def _goals(steps: int) -> list[int]:
    """Where a training of `steps` steps validates."""
    return [round(steps * goal / VALIDATIONS) for goal in range(1, VALIDATIONS + 1)]


def _copy(source: Path, destination: Path) -> None:
    """Replace `destination` by a copy of `source`; whoever is killed in between leaves the one before whole."""
    fresh = destination.with_name(destination.name + ".new")
    shutil.copyfile(source, fresh)
    fresh.replace(destination)
