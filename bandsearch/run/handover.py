"""Handing the winner over: the last check, export, evaluation of the three arms."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torch import Tensor

from bandsearch.adapters.card import model_card
from bandsearch.adapters.export import export_adapter, write_card
from bandsearch.adapters.verify import require_sound
from bandsearch.data.dataset import Encoded
from bandsearch.engine.engine import Engine
from bandsearch.engine.pool import EnginePool
from bandsearch.evaluate.arms import compare, score_arm
from bandsearch.evaluate.lm_tasks import run_tasks
from bandsearch.evaluate.retention import measure_retention
from bandsearch.run.job import Job
from bandsearch.run.retrain import Training, best_checkpoint
from bandsearch.rundir import RunDirectory
from bandsearch.values.candidate import Candidate, Role
from bandsearch.values.evaluation import Arm, ArmScores, Choice, Evaluation, Winner
from bandsearch.values.plan import Plan
from bandsearch.values.progress import Listener, Update
from bandsearch.values.spec import RunSpec
from bandsearch.values.statistics import paired_bootstrap

BASE, FULL_DEPTH, WINNER = Arm.BASE.value, Arm.FULL_DEPTH.value, Arm.WINNER.value
# Of the time an arm has, what may go into what it has forgotten.
RETENTION_SHARE = 0.1


def settle(pool: EnginePool, folder: Path, winner: Winner, plan: Plan) -> Winner:
    """Compare the two finished trainings on validation once more, and fall back to the baseline if it is ahead.

    Confirmation judged shorter trainings. What is handed over must not be worse than the habit at full length; the
    test split has no say in it. Paired bootstrap over the validation examples.
    """
    if winner.candidate == winner.baseline:
        return winner
    ours, theirs = (
        pool.apply(0, _validation_losses, best_checkpoint(folder, candidate), plan.validation_examples)
        for candidate in (winner.candidate, winner.baseline)
    )
    difference = paired_bootstrap([a - b for a, b in zip(ours, theirs, strict=True)])
    if difference.low <= 0:
        return winner
    return winner.model_copy(
        update={
            "candidate": winner.baseline,
            "role": Role.FULL_DEPTH,
            "trainable_parameters": winner.baseline_parameters,
            "choice": Choice.BASELINE,
            "reason": f"{winner.reason} Trained to full length, {winner.candidate} fell behind tuned full-depth LoRA "
            f"on validation by {difference.mean:.4f} ({difference.low:.4f} to {difference.high:.4f}); the baseline is "
            "handed over.",
        }
    )


def export_winner(pool: EnginePool, home: RunDirectory, job: Job, winner: Winner) -> None:
    """Write `adapter/` from the kept checkpoint; refuse it if the pre-flight finds an error."""
    checkpoint = best_checkpoint(home.scratch / "full", winner.candidate)
    candidate, tensors = pool.apply(0, _trained, checkpoint)
    layout = job.summary.layout
    card = model_card(winner, layout, job.source, job.dataset.name, home.adapter)
    export_adapter(tensors, candidate, layout, job.source, home.adapter, card)
    require_sound(home.adapter, layout)


def evaluate_arms(
    pool: EnginePool,
    home: RunDirectory,
    job: Job,
    plan: Plan,
    winner: Winner,
    wall_left: Callable[[], float],
    listen: Listener,
) -> Evaluation:
    """Score base, tuned full depth and winner on the test split and on texts of the base's own kind, one engine per
    arm where there are as many."""
    trained = {FULL_DEPTH: (winner.baseline, winner.baseline_parameters)}
    if winner.candidate != winner.baseline:
        trained[WINNER] = (winner.candidate, winner.trainable_parameters)
    queue: list[tuple[str, Path | None, int]] = [(BASE, None, 0)]
    queue += [
        (arm, best_checkpoint(home.scratch / "full", candidate), count) for arm, (candidate, count) in trained.items()
    ]
    rounds = math.ceil(len(queue) / pool.size)

    def work(position: int) -> ArmScores:
        arm, checkpoint, parameters = queue[position]
        left = wall_left()
        seconds = None if math.isinf(left) else max(0.0, left) / (rounds - position // pool.size)
        listen(Update(stage="evaluate", message=f"scoring {arm.replace('_', ' ')} on the test split"))
        texts = job.retention.texts[: plan.retention_texts]
        scores = pool.apply(position % pool.size, _score, checkpoint, arm, job.spec, plan, texts, seconds)
        return scores.model_copy(update={"trainable_parameters": parameters})

    with ThreadPoolExecutor(pool.size) as threads:
        scores = tuple(threads.map(work, range(len(queue))))
    if WINNER not in trained:
        # The baseline is the winner: one training, shown under both names.
        scores = (*scores, scores[-1].model_copy(update={"arm": Arm.WINNER}))
    evaluation = Evaluation(arms=scores, comparisons=compare(scores), retention_texts=job.retention.name)
    write_card(
        home.adapter,
        model_card(winner, job.summary.layout, job.source, job.dataset.name, home.adapter, evaluation),
    )
    return evaluation


def _validation_losses(engine: Engine, checkpoint: Path, limit: int) -> list[float]:
    session = engine.restore(checkpoint)
    try:
        return [example.loss for example in engine.losses("validation", session, limit)]
    finally:
        engine.evict(session)


def _trained(engine: Engine, checkpoint: Path) -> tuple[Candidate, dict[str, Tensor]]:
    """The candidate as it was trained in the end (its rate may have been lowered) and its factors."""
    session = engine.restore(checkpoint)
    try:
        training = Training.model_validate_json((checkpoint.parent / "training.json").read_text(encoding="utf-8"))
        return training.candidate, engine.adapter(session)
    finally:
        engine.evict(session)


def _score(
    engine: Engine,
    checkpoint: Path | None,
    arm: str,
    spec: RunSpec,
    plan: Plan,
    texts: tuple[Encoded, ...],
    seconds: float | None,
) -> ArmScores:
    started = time.monotonic()
    session = engine.restore(checkpoint) if checkpoint else None
    try:
        retention = None
        if texts:
            share = None if seconds is None else RETENTION_SHARE * seconds
            with engine.attached(session) as model:
                retention = measure_retention(model, engine.tokenizer.pad_token_id, texts, share)
        scores = score_arm(
            engine,
            session,
            arm,
            test_examples=plan.test_examples,
            generated_examples=plan.generated_examples,
            deadline=None if seconds is None else max(0.0, seconds - (time.monotonic() - started)),
        ).model_copy(update={"retention": retention})
        if not spec.tasks:
            return scores
        with engine.attached(session) as model:
            tasks = run_tasks(model, engine.tokenizer, spec.tasks, spec.task_directory, spec.task_limit)
        return scores.model_copy(update={"tasks": tasks})
    finally:
        if session is not None:
            engine.evict(session)
