"""What the evaluation is given of a budget: how many examples and texts, and what they take. Pure."""

from __future__ import annotations

import bisect
import math
from enum import StrEnum
from typing import NamedTuple

from bandsearch.search.clock import MARGIN
from bandsearch.values.plan import ARMS, EVALUATION_ROWS, Costs, Plan
from bandsearch.values.spec import RunSpec

LM_EVAL_SHARE = 0.10
RETENTION_SHARE = 0.02
# Base, full depth and winner.
EVALUATED = 1 + ARMS


class Kind(StrEnum):
    """What is asked about an arm, in the order of asking."""

    RETENTION = "retention"
    LOSSES = "losses"
    ANSWERS = "answers"
    TASKS = "tasks"


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
        asked = min(test_examples, 256) if costs.seconds_per_generation else 0
        return EvaluationSize(test_examples, asked, retention_texts)

    def paid(share: float, seconds_each: float, most: int) -> int:
        seconds = share * wall_seconds
        counts = range(1, most + 1)
        return bisect.bisect_right(counts, seconds, key=lambda count: seconds_each * examples_each(count, engines))

    by_loss = paid(0.05, costs.seconds_per_test_loss, test_examples)
    return EvaluationSize(
        max(1, by_loss),
        # An answer that costs nothing is none.
        paid(0.10, costs.seconds_per_generation, by_loss) if costs.seconds_per_generation else 0,
        paid(RETENTION_SHARE, costs.seconds_per_retention, retention_texts),
    )


def evaluation_seconds(
    spec: RunSpec, costs: Costs, size: EvaluationSize, engines: int, wall_seconds: float | None, arms: int = ARMS
) -> float:
    """Of so many beside the base."""
    lm_eval = LM_EVAL_SHARE * wall_seconds if spec.tasks and wall_seconds is not None else 0.0
    return _own_seconds(costs, size, engines, 1 + arms) + lm_eval


def spare_evaluation(plan: Plan, arms: int) -> float:
    """Seconds of the evaluation that are not needed where, beside the base, so many arms are evaluated and not two."""
    return plan.seconds_of("evaluate") - sum(planned_seconds(plan, 1 + arms).values())


def planned_seconds(plan: Plan, arms: int) -> dict[Kind, float]:
    """Wall seconds that the plan sets aside for each kind where so many arms are evaluated, the base among them.

    lm-eval, whose length nobody knows, has as much for fewer of them.
    """
    size = EvaluationSize(plan.test_examples, plan.generated_examples, plan.retention_texts)
    lm_eval = plan.seconds_of("evaluate") - _own_seconds(plan.costs, size, plan.engines, 1 + plan.evaluated)
    return {**_seconds_by_kind(plan.costs, size, plan.engines, arms), Kind.TASKS: max(0.0, lm_eval)}


def examples_each(count: int, engines: int, arms: int = EVALUATED) -> float:
    """The most that one engine scores where `count` examples of every arm are handed out in parts.

    Never less for more of them. Engines that are free take the next part: either all take as many, or they are busy
    alike but for the last part.
    """
    part = min(count, EVALUATION_ROWS)
    turns = math.ceil(arms * math.ceil(count / EVALUATION_ROWS) / engines)
    return min(turns * part, (arms * count + (engines - 1) * part) / engines)


def evaluation_detail(spec: RunSpec, size: EvaluationSize, engines: int) -> str:
    """In words, for the plan."""
    words = f"all arms, {size.test} examples, {size.generated} generated, {size.retained} texts for forgetting"
    if engines > 1:
        words += f", shared out over {engines} engines"
    return words + ("; lm-eval, an arm on one engine" if spec.tasks else "")


def _own_seconds(costs: Costs, size: EvaluationSize, engines: int, arms: int) -> float:
    return sum(_seconds_by_kind(costs, size, engines, arms).values())


def _seconds_by_kind(costs: Costs, size: EvaluationSize, engines: int, arms: int) -> dict[Kind, float]:
    """Wall seconds of so many arms, without lm-eval."""
    one_by_one = {
        Kind.RETENTION: (size.retained, costs.seconds_per_retention),
        Kind.LOSSES: (size.test, costs.seconds_per_test_loss),
        Kind.ANSWERS: (size.generated, costs.seconds_per_generation),
    }
    return {
        kind: MARGIN * examples_each(count, engines, arms) * seconds for kind, (count, seconds) in one_by_one.items()
    }
