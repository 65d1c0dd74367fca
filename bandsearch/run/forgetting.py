"""What fine-tuning has made the base forget, in words and in rows of a table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bandsearch.run.charts import ARM_CLASSES
from bandsearch.run.words import ARM_NAMES, signed, span
from bandsearch.values.evaluation import Arm, ArmScores, Evaluation, Metric, Winner
from bandsearch.values.retention import Retention

METRICS = (Metric.RETENTION_LOSS, Metric.DIVERGENCE)


@dataclass(frozen=True)
class ForgettingRow:
    """One arm; `lost` is its loss minus the base's, on the same texts."""

    name: str
    class_: str
    loss: str
    lost: str
    interval: str
    divergence: str


def forgetting_words(winner: Winner, evaluation: Evaluation) -> str:
    """What winner and baseline have forgotten, and whether one forgets less beyond noise; empty if not measured.

    Where no difference was shown on the task, the one that forgets less is said to be the one to choose.
    """
    full = _forgot(evaluation, Arm.FULL_DEPTH)
    if full is None:
        return ""
    where = f"On {_texts(evaluation)} tuned full-depth LoRA"
    ours = _forgot(evaluation, Arm.WINNER)
    if ours is None or winner.candidate == winner.baseline:
        return f"{where} {full}."
    return f"{where} {full}; the winner {ours}: {_judged(evaluation)}."


def forgetting_rows(evaluation: Evaluation) -> Iterable[ForgettingRow]:
    for arm in evaluation.arms:
        if arm.retention is None:
            continue
        lost = evaluation.comparison(arm.arm, Arm.BASE, Metric.RETENTION_LOSS)
        yield ForgettingRow(
            name=ARM_NAMES[arm.arm],
            class_=ARM_CLASSES.get(arm.arm, "quiet"),
            loss=f"{arm.retention.loss:.4f}",
            lost="–" if lost is None else signed(lost.difference.mean, Metric.RETENTION_LOSS),
            interval="–" if lost is None else span(lost.difference, Metric.RETENTION_LOSS),
            divergence=f"{arm.retention.divergence:.4f}",
        )


def _forgot(evaluation: Evaluation, arm: Arm) -> str | None:
    retention = _retention(evaluation.arms, arm)
    lost = evaluation.comparison(arm, Arm.BASE, Metric.RETENTION_LOSS)
    if retention is None or lost is None:
        return None
    return f"changes the loss by {lost.difference.mean:+.4f} and diverges by {retention.divergence:.4f} nats a token"


def _judged(evaluation: Evaluation) -> str:
    divergence = evaluation.comparison(Arm.WINNER, Arm.FULL_DEPTH, Metric.DIVERGENCE)
    task = evaluation.comparison(Arm.WINNER, Arm.FULL_DEPTH, Metric.LOSS)
    if divergence is None or not divergence.difference.excludes_zero:
        return "neither stays closer to the base beyond noise"
    less = divergence.difference.high < 0
    closer = "it forgets less" if less else "it forgets more"
    if task is None or task.difference.excludes_zero:
        return closer
    if less:
        return f"{closer}, and as no difference was shown on the task it is the one to choose"
    return f"{closer}, and as no difference was shown on the task full depth is the one that keeps more"


def _texts(evaluation: Evaluation) -> str:
    counts = [len(arm.retention.losses) for arm in evaluation.arms if arm.retention is not None]
    return f"{min(counts)} texts away from the task ({evaluation.retention_texts})"


def _retention(arms: Iterable[ArmScores], name: Arm) -> Retention | None:
    return next((arm.retention for arm in arms if arm.arm == name), None)
