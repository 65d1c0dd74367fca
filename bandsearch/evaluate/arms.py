"""Scores of one arm on the test split, and paired differences between arms."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence

from bandsearch.data.dataset import Encoded
from bandsearch.engine.engine import Engine
from bandsearch.engine.scoring import ExampleLoss
from bandsearch.evaluate.answers import is_right
from bandsearch.values.evaluation import Arm, ArmScores, Comparison, ExampleScore, Interval, Metric
from bandsearch.values.statistics import paired_bootstrap, paired_proportions

PAIRS = ((Arm.WINNER, Arm.FULL_DEPTH), (Arm.WINNER, Arm.BASE), (Arm.FULL_DEPTH, Arm.BASE))


def score_arm(
    engine: Engine, session: str | None, arm: Arm, *, test_examples: int, generated_examples: int
) -> ArmScores:
    """Loss of the first `test_examples` of the test split, and greedy answers to the first `generated_examples`."""
    losses = engine.losses("test", session, test_examples)
    answers = engine.generate("test", session, min(generated_examples, len(losses)))
    return scores_of(arm, losses, answers, engine.dataset.test)


def scores_of(
    arm: Arm, losses: Sequence[ExampleLoss], answers: Sequence[str | None], references: Sequence[Encoded]
) -> ArmScores:
    """Of the first examples of a split, `references`, each with its loss, and the first of them with an answer,
    None where that is not judged."""
    asked = Counter(reference.group for reference in references[: len(losses)])
    numbers = {group: number for number, (group, times) in enumerate(asked.items()) if times > 1}
    return ArmScores(
        arm=arm,
        examples=tuple(
            ExampleScore(
                loss=loss,
                supervised_tokens=tokens,
                group=numbers.get(reference.group),
                correct=None if answer is None else is_right(answer, reference.answer),
                generated=answer,
            )
            for (loss, tokens), answer, reference in zip(
                losses, itertools.chain(answers, itertools.repeat(None)), references, strict=False
            )
        ),
    )


def compare(arms: Sequence[ArmScores], pairs: Sequence[tuple[Arm, Arm]] = PAIRS) -> tuple[Comparison, ...]:
    """Paired intervals of loss, exact match and retention, over what both arms of a pair were scored on.

    Losses weigh as many tokens as an example supervises; examples that ask the same are one group.
    """
    by_name = {arm.arm: arm for arm in arms}
    comparisons = []
    for arm, reference in pairs:
        both = list(zip(by_name[arm].examples, by_name[reference].examples, strict=False))
        intervals = _on_the_task(both) | _kept(by_name[arm], by_name[reference])
        comparisons += [
            Comparison(arm=arm, reference=reference, metric=metric, difference=interval)
            for metric, interval in intervals.items()
        ]
    return tuple(comparisons)


def _on_the_task(both: Sequence[tuple[ExampleScore, ExampleScore]]) -> dict[Metric, Interval]:
    groups = [place if ours.group is None else (ours.group,) for place, (ours, _) in enumerate(both)]
    intervals = {}
    if both:
        losses = [ours.loss - theirs.loss for ours, theirs in both]
        tokens = [ours.supervised_tokens for ours, _ in both]
        intervals[Metric.LOSS] = paired_bootstrap(losses, weights=tokens, groups=groups)
    matches = {
        place: float(ours.correct) - float(theirs.correct)
        for place, (ours, theirs) in enumerate(both)
        if ours.correct is not None and theirs.correct is not None
    }
    if matches:
        judged = [groups[place] for place in matches]
        intervals[Metric.EXACT_MATCH] = paired_proportions(list(matches.values()), groups=judged)
    return intervals


def _kept(arm: ArmScores, reference: ArmScores) -> dict[Metric, Interval]:
    """Differences of retention, text by text; nothing where either was not measured."""
    ours, theirs = arm.retention, reference.retention
    if ours is None or theirs is None:
        return {}
    pairs = {
        Metric.RETENTION_LOSS: (ours.losses, theirs.losses),
        Metric.DIVERGENCE: (ours.divergences, theirs.divergences),
    }
    differences = {metric: [a - b for a, b in zip(*both, strict=False)] for metric, both in pairs.items()}
    return {metric: paired_bootstrap(found) for metric, found in differences.items() if found}
