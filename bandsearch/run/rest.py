"""The rest of a budget: more of it for a run, whether it pays for an adapter, and an end for what outlasts it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bandsearch.engine.failures import LostEngineError, OverrunError
from bandsearch.engine.pool import EnginePool
from bandsearch.run.budgets import least_budget
from bandsearch.run.planning import least_rest
from bandsearch.values.budget import Budget
from bandsearch.values.errors import BudgetError
from bandsearch.values.plan import Plan
from bandsearch.values.spec import RunSpec

# Behind the end of a budget, wall seconds or a share of it: the step under way, and what no measurement foresees.
GRACE_SECONDS, GRACE_SHARE = 60.0, 0.02


def enlarged(spec: RunSpec, text: str) -> RunSpec:
    """With the budget `text`, which is all that the run may spend. Raises BudgetError where that is no more of the same
    unit; as much is no change."""
    given, budget = spec.budget, Budget.parse(text)
    if given is None:
        raise BudgetError("The run is bounded by its number of candidates alone.", "Resume it without --budget.")
    if budget.unit is not given.unit or budget.seconds < given.seconds:
        raise BudgetError(
            f"The run was given {given}, and {budget} is not more of that.",
            "Give all that it may spend, with what it has spent, in the same unit.",
        )
    return spec.model_copy(update={"budget": budget})


def require_rest(
    path: Path, spec: RunSpec, plan: Plan, wall_seconds: float, wall_left: float, stages: list[str]
) -> None:
    """Refuse to go on with the run in `path` where the `wall_left` of its budget, `wall_seconds` in all, does not pay
    for the smallest final training and its evaluation: what would be handed over then has hardly been trained.

    `stages`: those that are still to be done. Raises BudgetError naming a budget that pays for them as planned.
    """
    least = least_rest(plan)
    if wall_left >= least:
        return
    needed = wall_seconds - wall_left + sum(plan.seconds_of(stage) for stage in ("load", *stages, "slack"))
    enough = least_budget(spec, wall_seconds, lambda wall: wall >= needed)
    raise BudgetError(
        f"The run has {max(wall_left, 0):.0f} s of its budget left; the smallest final training and its evaluation "
        f"need {least:.0f} s.",
        f"What is planned is paid for with `bandsearch resume {path} --budget {enough}`.",
    )


@contextmanager
def ended_in_time(wall_seconds: float | None, wall_left: float, finishing: float, pool: EnginePool) -> Iterator[None]:
    """Take the engines away, from now on seen, where the `wall_left` of a budget of `wall_seconds` and a grace are over
    and one of them does not come back from its work: a driver that hangs never does. Raises OverrunError then.

    Where the budget is spent already, what has begun is finished all the same: `finishing` seconds are planned for it.
    """
    if wall_seconds is None:
        yield
        return
    is_over = threading.Event()

    def end() -> None:
        is_over.set()
        pool.abandon()

    timer = threading.Timer(_patience(wall_seconds, wall_left, finishing), end)
    timer.daemon = True
    timer.start()
    try:
        yield
    except LostEngineError as error:
        if not is_over.is_set():
            raise
        sentence = "The budget is used up and an engine does not come back from its work."
        raise OverrunError(sentence, "Look at `nvidia-smi` and `dmesg`.") from error
    finally:
        timer.cancel()


def _patience(wall_seconds: float, wall_left: float, finishing: float) -> float:
    return max(wall_left, finishing) + max(GRACE_SECONDS, GRACE_SHARE * wall_seconds)
