"""Handing the winner over: the last check, export, evaluation of the three arms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from bandsearch.adapters.card import model_card
from bandsearch.adapters.export import export_adapter, write_card
from bandsearch.adapters.limits import CHAT_TEMPLATE_FILE
from bandsearch.adapters.verify import require_sound
from bandsearch.engine.engine import Engine
from bandsearch.engine.pool import EnginePool
from bandsearch.evaluate.arms import compare, scores_of
from bandsearch.run.arms import Scoring
from bandsearch.run.job import Job
from bandsearch.run.retrain import best_checkpoint
from bandsearch.rundir import RunDirectory
from bandsearch.search.rates import better_rate
from bandsearch.values.candidate import Role
from bandsearch.values.evaluation import Arm, ArmScores, Choice, Evaluation, Sample, Winner
from bandsearch.values.plan import Plan
from bandsearch.values.progress import Listener

# Test examples that the report shows as text.
SAMPLES = 8


def settle(pool: EnginePool, folder: Path, winner: Winner, plan: Plan) -> Winner:
    """Compare the two finished trainings on validation once more, and fall back to the baseline if it is ahead by as
    much as matters; of two rates of full depth the better one is kept.

    Confirmation judged shorter trainings. What is handed over must not be worse than the habit at full length; the
    test split has no say in it. Paired bootstrap over the validation examples, as on the test split.
    """
    if winner.candidate == winner.baseline:
        return winner
    pair = (Arm.WINNER, Arm.FULL_DEPTH)
    scores = [
        pool.apply(0, _on_validation, arm, best_checkpoint(folder, candidate), plan.validation_examples)
        for arm, candidate in zip(pair, (winner.candidate, winner.baseline), strict=True)
    ]
    if winner.is_open:
        losses = (arm.loss for arm in scores)
        return better_rate(winner, dict(zip((winner.candidate, winner.baseline), losses, strict=True)))
    difference = compare(scores, [pair])[0].difference
    if difference.low <= 0 or difference.mean <= winner.tolerance * scores[1].loss:
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
    checkpoint = best_checkpoint(home.full, winner.candidate)
    tensors = pool.apply(0, _factors, checkpoint)
    layout = job.summary.layout
    card = _card(home, job, winner)
    export_adapter(
        tensors, winner.as_trained(winner.candidate), layout, job.source, home.adapter, card, job.dataset.chat_template
    )
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
    """Score base, tuned full depth and winner, on all engines, and compare them; the card says how they compare.
    Raises what `heed` raises."""
    trained = {Arm.FULL_DEPTH: (winner.baseline, winner.baseline_parameters)}
    if winner.candidate != winner.baseline:
        trained[Arm.WINNER] = (winner.candidate, winner.trainable_parameters)
    checkpoints: dict[Arm, Path | None] = {Arm.BASE: None}
    checkpoints |= {arm: best_checkpoint(home.full, candidate) for arm, (candidate, _) in trained.items()}
    scored = Scoring(pool, home, job, plan, checkpoints, wall_left, listen, heed).scores()
    for arm, (_, parameters) in trained.items():
        scored[arm] = scored[arm].model_copy(update={"trainable_parameters": parameters})
    scores = tuple(scored.values())
    if Arm.WINNER not in trained:
        # The baseline is the winner: one training, shown under both names.
        scores = (*scores, scores[-1].model_copy(update={"arm": Arm.WINNER}))
    samples = tuple(
        Sample(prompt=job.tokenizer.decode(example.prompt_ids.tolist()), answer=example.answer)
        for example in job.dataset.test[: min(SAMPLES, *(len(arm.examples) for arm in scores))]
    )
    evaluation = Evaluation(
        arms=scores,
        comparisons=compare(scores),
        retention_texts=job.retention.name,
        task_form=job.task_form,
        too_long=job.too_long(min(len(arm.examples) for arm in scores)),
        samples=samples,
    )
    write_card(home.adapter, _card(home, job, winner, evaluation))
    return evaluation


def _card(home: RunDirectory, job: Job, winner: Winner, evaluation: Evaluation | None = None) -> str:
    written = home.adapter / CHAT_TEMPLATE_FILE if job.dataset.chat_template else None
    return model_card(winner, job.lineage, home.adapter, evaluation, written)


def _on_validation(engine: Engine, arm: Arm, checkpoint: Path, limit: int) -> ArmScores:
    session = engine.restore(checkpoint)
    try:
        return scores_of(arm, engine.losses("validation", session, limit), (), engine.dataset.validation)
    finally:
        engine.evict(session)


def _factors(engine: Engine, checkpoint: Path) -> dict[str, Tensor]:
    session = engine.restore(checkpoint)
    try:
        return engine.adapter(session)
    finally:
        engine.evict(session)
