"""Candidates that somebody has tried, with made-up losses."""

from __future__ import annotations

from collections.abc import Sequence

from bandsearch.values.candidate import Candidate, Role
from bandsearch.values.trial import Point, TrialResult, TrialState


def a_result(
    number: int,
    candidate: Candidate,
    losses: Sequence[float],
    *,
    state: TrialState = TrialState.COMPLETE,
    stage: str = "search",
    trainable_parameters: int = 1,
) -> TrialResult:
    """Read after 30 steps, after 90, and so on."""
    return TrialResult(
        number=number,
        candidate=candidate,
        role=Role.SEARCHED,
        seed=0,
        state=state,
        points=tuple(Point(steps=30 * 3**rung, loss=loss, seconds=0) for rung, loss in enumerate(losses)),
        trainable_parameters=trainable_parameters,
        proposed_by="sampler",
        stage=stage,
    )
