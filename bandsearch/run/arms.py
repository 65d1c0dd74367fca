"""The scores of several arms, from all engines at once: their examples and texts are handed out in parts."""

from __future__ import annotations

import itertools
import math
import queue
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from bandsearch.engine.engine import Engine
from bandsearch.engine.handles import EngineHandles
from bandsearch.engine.scoring import ExampleLoss, answer_length
from bandsearch.evaluate.arms import scores_of
from bandsearch.evaluate.asking import asking
from bandsearch.evaluate.lm_tasks import TaskScores, run_tasks
from bandsearch.evaluate.retention import retention_of
from bandsearch.run.evaluating import Kind, planned_seconds
from bandsearch.run.job import Job
from bandsearch.rundir import RunDirectory
from bandsearch.values.evaluation import Arm, ArmScores
from bandsearch.values.plan import EVALUATION_ROWS, Plan
from bandsearch.values.progress import Listener, Update
from bandsearch.values.retention import Retention
from bandsearch.values.spec import RunSpec
from bandsearch.values.value import Value


@dataclass(frozen=True)
class Part:
    """What one engine does at a time: `count` examples of the test split, or texts, from `start` on; or lm-eval."""

    kind: Kind
    arm: Arm
    start: int
    count: int


class Found(Value):
    """What came of a part, in its order; only the field of its kind is filled."""

    retention: Retention | None = None
    losses: tuple[ExampleLoss, ...] = ()
    answers: tuple[str | None, ...] = ()
    tasks: TaskScores | None = None


class Scoring:
    """The scoring of arms, each the adapter of a checkpoint or the bare base.

    Every engine holds the sessions of the arms that it was asked about.
    """

    def __init__(
        self,
        pool: EngineHandles,
        home: RunDirectory,
        job: Job,
        plan: Plan,
        checkpoints: dict[Arm, Path | None],
        wall_left: Callable[[], float],
        listen: Listener,
        heed: Callable[[], None],
    ) -> None:
        self._pool, self._home, self._spec, self._listen, self._heed = pool, home, job.spec, listen, heed
        self._checkpoints, self._wall_left, self._total = checkpoints, wall_left, wall_left()
        self._reserved = _reserved(planned_seconds(plan, len(checkpoints)), self._total)
        self._references = job.dataset.test
        self._texts = job.retention.texts[: plan.retention_texts]
        # Of all answers, so that none is cut shorter than others.
        self._answer_length = answer_length(job.tokenizer, job.dataset.test[: plan.generated_examples])
        self._counts = {
            Kind.RETENTION: len(self._texts),
            Kind.LOSSES: plan.test_examples,
            Kind.ANSWERS: plan.generated_examples if self._answer_length else 0,
            Kind.TASKS: int(bool(job.spec.tasks)),
        }
        self._idle: queue.SimpleQueue[int] = queue.SimpleQueue()
        for engine in range(pool.size):
            self._idle.put(engine)
        self._sessions: dict[tuple[int, Arm], str] = {}
        self._folder = home.scratch / "arms"
        self._folder.mkdir(exist_ok=True)

    def scores(self) -> dict[Arm, ArmScores]:
        """On the test split, on texts of the base's own kind and on lm-eval's tasks. They do not depend on how many
        engines there are.

        Where `wall_left` gets short no more parts are begun, beside the first of every arm's losses and texts. All arms
        are asked about an example before the next, and all have the same in the end. What is found is kept in
        `scratch/arms/`, and not done again after a kill: the time for it is spent. `heed` is asked before every part,
        and raises where none is to be begun any more.
        """
        *others, last = (arm.replace("_", " ") for arm in self._checkpoints)
        self._tell(f"scoring {', '.join(others)} and {last} on the test split")
        parts = list(self._parts())
        with ThreadPoolExecutor(self._pool.size) as threads:
            found = dict(zip(parts, threads.map(self._do, parts), strict=True))
        self._leave()
        common = {kind: _common(kind, found, len(self._checkpoints)) for kind in Kind}
        return {arm: self._scores(arm, common) for arm in self._checkpoints}

    def _parts(self) -> Iterator[Part]:
        for kind, count in self._counts.items():
            for start in range(0, count, EVALUATION_ROWS):
                for arm in self._checkpoints:
                    yield Part(kind, arm, start, min(EVALUATION_ROWS, count - start))

    def _do(self, part: Part) -> Found | None:
        """What is found, or was before a kill; None where it is too late to begin."""
        file = self._folder / f"{part.arm}-{part.kind}-{part.start}.json"
        found = self._home.read(file, Found)
        if found is None and not self._is_late(part):
            self._heed()
            engine = self._idle.get()
            try:
                found = self._ask(engine, part)
            finally:
                self._idle.put(engine)
            self._home.write(file, found)
        return found

    def _leave(self) -> None:
        for (engine, _), session in self._sessions.items():
            self._pool.get(self._pool.submit(engine, "evict", session))

    def _is_late(self, part: Part) -> bool:
        first = part.start == 0 and part.kind is not Kind.ANSWERS
        if first or math.isinf(self._total):
            return False
        return self._wall_left() < self._reserved[part.kind]

    def _ask(self, engine: int, part: Part) -> Found:
        session = self._session(engine, part.arm)
        start, count = part.start, part.count
        if part.kind is Kind.RETENTION:
            texts = self._texts[start : start + count]
            return Found(retention=self._pool.apply(engine, retention_of, session, texts))
        if part.kind is Kind.LOSSES:
            losses = self._pool.get(self._pool.submit(engine, "losses", "test", session, count, start))
            return Found(losses=losses)
        if part.kind is Kind.ANSWERS:
            asked = ("test", session, count, self._answer_length, start)
            return Found(answers=self._pool.get(self._pool.submit(engine, "generate", *asked)))
        scores = self._pool.apply(engine, _tasks, session, self._spec, self._task_seconds(part.arm))
        for task in self._spec.tasks:
            arm = part.arm.replace("_", " ")
            if task in scores.cut:
                self._tell(f"{task}: time allowed {scores.cut[task]} documents for {arm}")
            if task in scores.failures:
                self._tell(f"{task} could not be read for {arm}: {scores.failures[task]}")
        return Found(tasks=scores)

    def _session(self, engine: int, arm: Arm) -> str | None:
        checkpoint = self._checkpoints[arm]
        if checkpoint is None:
            return None
        if (engine, arm) not in self._sessions:
            self._sessions[engine, arm] = self._pool.get(self._pool.submit(engine, "restore", checkpoint))
        return self._sessions[engine, arm]

    def _task_seconds(self, arm: Arm) -> float | None:
        """What is left, shared with the arms that take their turn on the same engine."""
        if math.isinf(self._total):
            return None
        turns = math.ceil(len(self._checkpoints) / self._pool.size)
        return max(0.0, self._wall_left()) / (turns - list(self._checkpoints).index(arm) // self._pool.size)

    def _tell(self, message: str) -> None:
        self._listen(Update(stage="evaluate", message=message))

    def _scores(self, arm: Arm, common: dict[Kind, list[dict[Arm, Found]]]) -> ArmScores:
        parts = {kind: [found[arm] for found in parts] for kind, parts in common.items()}
        losses = [loss for each in parts[Kind.LOSSES] for loss in each.losses]
        answers = [answer for each in parts[Kind.ANSWERS] for answer in each.answers]
        kept = [each.retention for each in parts[Kind.RETENTION] if each.retention]
        retention = None
        if kept:
            divergences = tuple(divergence for each in kept for divergence in each.divergences)
            retention = Retention(losses=tuple(loss for each in kept for loss in each.losses), divergences=divergences)
        tasks = next((each.tasks for each in parts[Kind.TASKS] if each.tasks), TaskScores())
        update = {"tasks": tasks.metrics, "task_documents": tasks.cut, "task_failures": tasks.failures}
        scores = scores_of(arm, losses, answers, self._references)
        return scores.model_copy(update={"retention": retention, **update})


def _reserved(planned: dict[Kind, float], total: float) -> dict[Kind, float]:
    """Seconds that are left alone by each kind, for those that are asked about after it: what the plan gives them, or
    their share of it where there is less than planned."""
    needed, last_first = sum(planned.values()), list(reversed(Kind))
    share = max(0.0, total) / needed if total < needed else 1.0
    later = itertools.accumulate((share * planned[kind] for kind in last_first), initial=0.0)
    return dict(zip(last_first, later, strict=False))


def _common(kind: Kind, found: dict[Part, Found | None], arms: int) -> list[dict[Arm, Found]]:
    """What was found of a kind, part by part, up to the first that any of the arms lacks."""
    by_start: dict[int, dict[Arm, Found]] = {}
    for part, each in found.items():
        if part.kind is kind:
            there = by_start.setdefault(part.start, {})
            if each is not None:
                there[part.arm] = each
    return list(itertools.takewhile(lambda there: len(there) == arms, by_start.values()))


def _tasks(engine: Engine, session: str | None, spec: RunSpec, seconds: float | None) -> TaskScores:
    asked = asking(spec, engine.tokenizer, engine.dataset)
    with engine.attached(session) as model:
        return run_tasks(model, engine.tokenizer, spec.tasks, spec.task_directory, spec.task_limit, seconds, asked)
