"""Handing the winner over: the last check, export, evaluation of the three arms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from bandsearch.adapters.card import model_card
from bandsearch.adapters.export import export_adapter, write_card
from bandsearch.adapters.limits import CHAT_TEMPLATE_FILE
from bandsearch.adapters.verify import require_sound
from bandsearch.data.template import CHAT_TEMPLATE
from bandsearch.engine.engine import Engine
from bandsearch.engine.pool import EnginePool
from bandsearch.evaluate.arms import compare
from bandsearch.run.arms import score_arms
from bandsearch.run.job import Job
from bandsearch.run.retrain import Training, best_checkpoint
from bandsearch.rundir import RunDirectory
from bandsearch.values.candidate import Candidate, Role
from bandsearch.values.evaluation import Arm, Choice, Evaluation, Sample, Winner
from bandsearch.values.plan import Plan
from bandsearch.values.progress import Listener
from bandsearch.values.statistics import paired_bootstrap

# Test examples that the report shows as text.
SAMPLES = 8


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
    heed: Callable[[], None],
) -> Evaluation:
    """Score base, tuned full depth and winner, on all engines, and compare them; the card says how they compare. As
    `score_arms` it raises what `heed` raises."""
    trained = {Arm.FULL_DEPTH: (winner.baseline, winner.baseline_parameters)}
    if winner.candidate != winner.baseline:
        trained[Arm.WINNER] = (winner.candidate, winner.trainable_parameters)
    checkpoints: dict[Arm, Path | None] = {Arm.BASE: None}
    checkpoints |= {arm: best_checkpoint(home.scratch / "full", candidate) for arm, (candidate, _) in trained.items()}
    scored = score_arms(pool, home, job, plan, checkpoints, wall_left, listen, heed)
    for arm, (_, parameters) in trained.items():
        scored[arm] = scored[arm].model_copy(update={"trainable_parameters": parameters})
    scores = tuple(scored.values())
    if Arm.WINNER not in trained:
        # The baseline is the winner: one training, shown under both names.
        scores = (*scores, scores[-1].model_copy(update={"arm": Arm.WINNER}))
    samples = tuple(
        Sample(prompt=job.tokenizer.decode(example.prompt_ids.tolist()), answer=example.answer)
        for example in job.dataset.test[:SAMPLES]
    )
    evaluation = Evaluation(
        arms=scores, comparisons=compare(scores), retention_texts=job.retention.name, samples=samples
    )
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
