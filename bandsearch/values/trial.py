"""What one training of one candidate came to."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from bandsearch.values.candidate import Candidate, Role
from bandsearch.values.value import Value


class TrialState(StrEnum):
    COMPLETE = "complete"
    PRUNED = "pruned"
    DIVERGED = "diverged"
    OUT_OF_MEMORY = "out_of_memory"
    RUNNING = "running"

    @property
    def is_finished(self) -> bool:
        return self is not TrialState.RUNNING


class TrialStage(StrEnum):
    """The stages that train candidates and leave a line each."""

    SEARCH = "search"
    CONFIRM = "confirm"


class Point(Value):
    """A reading on the learning curve: mean validation loss (nats per supervised token) after `steps` steps."""

    steps: int = Field(ge=0)
    loss: float
    seconds: float = Field(ge=0, description="engine seconds spent on this candidate so far")


class TrialResult(Value):
    """A line of `trials.jsonl`. `number` counts candidates in the order they were proposed, from 0."""

    number: int
    candidate: Candidate
    role: Role
    seed: int
    state: TrialState
    points: tuple[Point, ...] = ()
    trainable_parameters: int = Field(ge=0)
    proposed_by: str = Field(description="probe, baseline, atlas, sampler or the stage that asked for it")
    stage: TrialStage = TrialStage.SEARCH
    reason: str = Field(default="", description="why it was pruned or failed")
    divergence: float | None = Field(
        default=None, description="KL(base || tuned) after the last step, nats a token; None where it was not asked for"
    )

    @property
    def last_loss(self) -> float | None:
        return self.points[-1].loss if self.points else None

    @property
    def steps(self) -> int:
        return self.points[-1].steps if self.points else 0

    def loss_at(self, steps: int) -> float | None:
        """The loss measured at exactly `steps`, if this trial got there."""
        return next((point.loss for point in self.points if point.steps == steps), None)
