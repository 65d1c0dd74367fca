"""Scores of a model as it stands, by Transformers' and PEFT's own passes."""

from __future__ import annotations

from typing import Any

from bandsearch.data.dataset import Dataset
from bandsearch.engine.scoring import ExampleLoss, greedy_answers
from bandsearch.evaluate.arms import scores_of
from bandsearch.probe.forward import losses_of_each
from bandsearch.values.evaluation import Arm, ArmScores


def score_plainly(model: Any, tokenizer: Any, dataset: Dataset, arm: Arm, count: int) -> ArmScores:
    """Loss of the first `count` examples of the test split, and greedy answers to them."""
    examples = dataset.test[:count]
    answers = greedy_answers(model, tokenizer, examples, dataset.stop_ids)
    found = dict(losses_of_each(model, examples))
    losses = [ExampleLoss(float(found[index].double().mean()), len(found[index])) for index in range(len(examples))]
    return scores_of(arm, losses, answers, dataset.test)
