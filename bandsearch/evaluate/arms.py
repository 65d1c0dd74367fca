"""Scores of one arm on the test split, and paired differences between arms."""

from __future__ import annotations

from collections.abc import Sequence

from bandsearch.engine.engine import Engine
from bandsearch.evaluate.answers import is_right
from bandsearch.values.evaluation import Arm, ArmScores, Comparison, ExampleScore, Metric
from bandsearch.values.statistics import paired_bootstrap

PAIRS = ((Arm.WINNER, Arm.FULL_DEPTH), (Arm.WINNER, Arm.BASE), (Arm.FULL_DEPTH, Arm.BASE))
# Of the time an arm has, what its losses may take; generation gets the rest.
LOSS_SHARE = 0.5


def score_arm(
    engine: Engine,
    session: str | None,
    arm: Arm,
    *,
    test_examples: int,
    generated_examples: int,
    deadline: float | None = None,
) -> ArmScores:
    """Loss of the first `test_examples` of the test split, and greedy answers to the first `generated_examples`.

    `deadline` in seconds from now; fewer examples are scored where it comes first, at least one batch.
    """
    share = None if deadline is None else deadline * LOSS_SHARE
    losses = engine.losses("test", session, test_examples, share)
    rest = None if deadline is None else deadline * (1 - LOSS_SHARE)
    texts = engine.generate("test", session, min(generated_examples, len(losses)), deadline=rest)
    references = engine.dataset.test
    return ArmScores(
        arm=arm,
        examples=tuple(
            ExampleScore(
                loss=loss,
                supervised_tokens=tokens,
                correct=is_right(texts[index], references[index].answer) if index < len(texts) else None,
                generated=texts[index] if index < len(texts) else None,
            )
            for index, (loss, tokens) in enumerate(losses)
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
