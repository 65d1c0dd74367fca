"""Scores of a model as it stands, by Transformers' and PEFT's own passes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from bandsearch.data.dataset import Dataset, Encoded
from bandsearch.engine.memory import in_halves
from bandsearch.engine.scoring import ExampleLoss, greedy_answers
from bandsearch.evaluate.arms import scores_of
from bandsearch.probe.forward import ROWS, token_losses
from bandsearch.values.evaluation import Arm, ArmScores


def score_plainly(model: Any, tokenizer: Any, dataset: Dataset, arm: Arm, count: int) -> ArmScores:
    """Loss of the first `count` examples of the test split, and greedy answers to them."""
    examples = dataset.test[:count]
    answers = greedy_answers(model, tokenizer, examples, dataset.stop_ids)
    return scores_of(arm, _losses(model, examples), answers, dataset.test)


def _losses(model: Any, examples: Sequence[Encoded]) -> list[ExampleLoss]:
    ascending = sorted(range(len(examples)), key=lambda index: len(examples[index].input_ids))
    found: dict[int, ExampleLoss] = {}
    for begin in range(0, len(ascending), ROWS):
        some = ascending[begin : begin + ROWS]
        with torch.no_grad():
            parts = in_halves(partial(token_losses, model), [examples[index] for index in some])
        counts = [int(examples[index].supervised.sum()) for index in some]
        for index, losses in zip(some, torch.cat(parts).split(counts), strict=True):
            found[index] = ExampleLoss(float(losses.double().mean()), len(losses))
    return [found[index] for index in range(len(examples))]
