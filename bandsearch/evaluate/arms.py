"""Scores of one arm on the test split, and paired differences between arms."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from bandsearch.data.dataset import Encoded
from bandsearch.engine.engine import Engine
from bandsearch.engine.scoring import ExampleLoss
from bandsearch.evaluate.answers import is_right
from bandsearch.values.evaluation import Arm, ArmScores, Comparison, ExampleScore, Metric
from bandsearch.values.statistics import paired_bootstrap

PAIRS = ((Arm.WINNER, Arm.FULL_DEPTH), (Arm.WINNER, Arm.BASE), (Arm.FULL_DEPTH, Arm.BASE))


def score_arm(
    engine: Engine, session: str | None, arm: Arm, *, test_examples: int, generated_examples: int
) -> ArmScores:
    """Loss of the first `test_examples` of the test split, and greedy answers to the first `generated_examples`."""
    losses = engine.losses("test", session, test_examples)
    answers = engine.generate("test", session, min(generated_examples, len(losses)))
    return scores_of(arm, losses, answers, engine.dataset.test)


def scores_of(
    arm: Arm, losses: Sequence[ExampleLoss], answers: Sequence[str], references: Sequence[Encoded]
) -> ArmScores:
    """Of the first examples of a split, `references`, each with its loss, and the first of them with an answer."""
    return ArmScores(
        arm=arm,
        examples=tuple(
            ExampleScore(
                loss=loss,
                supervised_tokens=tokens,
                correct=None if answer is None else is_right(answer, reference.answer),
                generated=answer,
            )
            for (loss, tokens), answer, reference in zip(
                losses, itertools.chain(answers, itertools.repeat(None)), references, strict=False
            )
        ),
    )


def compare(arms: Sequence[ArmScores], pairs: Sequence[tuple[Arm, Arm]] = PAIRS) -> tuple[Comparison, ...]:
    """Paired bootstrap of loss, exact match and retention, over what both arms of a pair were scored on."""
    by_name = {arm.arm: arm for arm in arms}
    comparisons = []
    for arm, reference in pairs:
        both = list(zip(by_name[arm].examples, by_name[reference].examples, strict=False))
        losses = [ours.loss - theirs.loss for ours, theirs in both]
        matches = [
            float(ours.correct) - float(theirs.correct)
            for ours, theirs in both
            if ours.correct is not None and theirs.correct is not None
        ]
        measured = {Metric.LOSS: losses, Metric.EXACT_MATCH: matches, **_kept(by_name[arm], by_name[reference])}
        for metric, differences in measured.items():
            if differences:
                interval = paired_bootstrap(differences)
                comparisons.append(Comparison(arm=arm, reference=reference, metric=metric, difference=interval))
    return tuple(comparisons)


def _kept(arm: ArmScores, reference: ArmScores) -> dict[Metric, list[float]]:
    """Differences of retention, text by text; nothing where either was not measured."""
    ours, theirs = arm.retention, reference.retention
    if ours is None or theirs is None:
        return {}
    return {
        Metric.RETENTION_LOSS: [a - b for a, b in zip(ours.losses, theirs.losses, strict=False)],
        Metric.DIVERGENCE: [a - b for a, b in zip(ours.divergences, theirs.divergences, strict=False)],
    }
