"""What the evaluation is given of a budget: how many examples and texts, and what they take. Pure."""

from __future__ import annotations

import math
from typing import NamedTuple

from bandsearch.search.clock import MARGIN
from bandsearch.values.plan import Costs
from bandsearch.values.spec import RunSpec

LM_EVAL_SHARE = 0.10
RETENTION_SHARE = 0.02


class EvaluationSize(NamedTuple):
    """Examples of the test split for the loss and for generation, and texts for what is forgotten."""

    test: int
    generated: int
    retained: int


def evaluation_size(
    costs: Costs, test_examples: int, retention_texts: int, engines: int, wall_seconds: float | None
) -> EvaluationSize:
    """All that there are, or what 5 %, 10 % and 2 % of the time pay for."""
    if wall_seconds is None:
        return EvaluationSize(test_examples, min(test_examples, 256), retention_texts)
    rounds = math.ceil(3 / engines)

    def paid(share: float, seconds_each: float) -> int:
        return int(share * wall_seconds / rounds / max(seconds_each, 1e-9))

    by_loss = paid(0.05, costs.seconds_per_test_loss)
    by_generation = paid(0.10, costs.seconds_per_generation)
    by_retention = paid(RETENTION_SHARE, costs.seconds_per_retention)
    return EvaluationSize(
        max(1, min(test_examples, by_loss)),
        max(0, min(test_examples, by_loss, by_generation)),
        min(retention_texts, by_retention),
    )


def evaluation_seconds(
    spec: RunSpec, costs: Costs, size: EvaluationSize, engines: int, wall_seconds: float | None
) -> float:
    rounds = math.ceil(3 / engines)
    own = (
        size.test * costs.seconds_per_test_loss
        + size.generated * costs.seconds_per_generation
        + size.retained * costs.seconds_per_retention
    )
    lm_eval = LM_EVAL_SHARE * wall_seconds if spec.tasks and wall_seconds is not None else 0.0
    return rounds * own * MARGIN + lm_eval
