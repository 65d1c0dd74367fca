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
from bandsearch.adapters.limits import CHAT_TEMPLATE_FILE
from bandsearch.adapters.verify import require_sound
from bandsearch.data.dataset import Encoded
from bandsearch.data.template import CHAT_TEMPLATE
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

# Of the time an arm has, what may go into what it has forgotten.
RETENTION_SHARE = 0.1
# Of the time that is left then, what lm-eval may count on; it gets whatever else the test split leaves.
TASK_SHARE = 0.5


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
    card = _card(home, job, winner)
    export_adapter(tensors, candidate, layout, job.source, home.adapter, card, job.dataset.chat_template)
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
    arm where there are as many. What is scored is kept in `scratch/arms/`, and not scored again after a kill: the
    time for it is spent."""
    trained = {Arm.FULL_DEPTH: (winner.baseline, winner.baseline_parameters)}
    if winner.candidate != winner.baseline:
        trained[Arm.WINNER] = (winner.candidate, winner.trainable_parameters)
    checkpoints: dict[Arm, Path | None] = {Arm.BASE: None}
    checkpoints |= {arm: best_checkpoint(home.scratch / "full", candidate) for arm, (candidate, _) in trained.items()}
    folder = home.scratch / "arms"
    folder.mkdir(exist_ok=True)
    known = {arm: home.read(folder / f"{arm}.json", ArmScores) for arm in checkpoints}
    queue = [arm for arm, scores in known.items() if scores is None]
    rounds = math.ceil(len(queue) / pool.size)

    def work(position: int) -> ArmScores:
        arm = queue[position]
        left = wall_left()
        seconds = None if math.isinf(left) else max(0.0, left) / (rounds - position // pool.size)
        listen(Update(stage="evaluate", message=f"scoring {arm.replace('_', ' ')} on the test split"))
        texts = job.retention.texts[: plan.retention_texts]
        engine = position % pool.size
        scores, cut = pool.apply(engine, _score, checkpoints[arm], arm, job.spec, plan, texts, seconds)
        for task, documents in cut.items():
            message = f"{task}: time allowed {documents} documents for {arm.replace('_', ' ')}"
            listen(Update(stage="evaluate", message=message))
        if arm in trained:
            scores = scores.model_copy(update={"trainable_parameters": trained[arm][1]})
        home.write(folder / f"{arm}.json", scores)
        return scores

    with ThreadPoolExecutor(pool.size) as threads:
        fresh = dict(zip(queue, threads.map(work, range(len(queue))), strict=True))
    scores = tuple(known[arm] or fresh[arm] for arm in checkpoints)
    if Arm.WINNER not in trained:
        # The baseline is the winner: one training, shown under both names.
        scores = (*scores, scores[-1].model_copy(update={"arm": Arm.WINNER}))
    evaluation = Evaluation(arms=scores, comparisons=compare(scores), retention_texts=job.retention.name)
    write_card(home.adapter, _card(home, job, winner, evaluation))
    return evaluation


def _card(home: RunDirectory, job: Job, winner: Winner, evaluation: Evaluation | None = None) -> str:
    data = job.dataset
    template = None if data.template == CHAT_TEMPLATE else data.template
    written = home.adapter / CHAT_TEMPLATE_FILE if data.chat_template else None
    layout = job.summary.layout
    return model_card(winner, layout, job.source, data.name, template, home.adapter, evaluation, written)


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
    arm: Arm,
    spec: RunSpec,
    plan: Plan,
    texts: tuple[Encoded, ...],
    seconds: float | None,
) -> tuple[ArmScores, dict[str, int]]:
    """The scores, and what time allowed of lm-eval's tasks where that is not all (`TaskScores.cut`)."""
    started = time.monotonic()

    def left(share: float = 1.0) -> float | None:
        return None if seconds is None else share * max(0.0, seconds - (time.monotonic() - started))

    session = engine.restore(checkpoint) if checkpoint else None
    try:
        retention = None
        if texts:
            with engine.attached(session) as model:
                retention = measure_retention(model, engine.tokenizer.pad_token_id, texts, left(RETENTION_SHARE))
        scores = score_arm(
            engine,
            session,
            arm,
            test_examples=plan.test_examples,
            generated_examples=plan.generated_examples,
            deadline=left(1 - TASK_SHARE if spec.tasks else 1.0),
        ).model_copy(update={"retention": retention})
        if not spec.tasks:
            return scores, {}
        with engine.attached(session) as model:
            tasks = run_tasks(model, engine.tokenizer, spec.tasks, spec.task_directory, spec.task_limit, left())
        return scores.model_copy(update={"tasks": tasks.metrics}), tasks.cut
    finally:
        if session is not None:
            engine.evict(session)
