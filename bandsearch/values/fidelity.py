"""Fidelity: how long and on what seed a candidate is trained."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from pydantic import Field

from bandsearch.values.value import Value

# The norm that the gradients of a step are clipped to.
CLIP = 1.0


class Schedule(StrEnum):
    """Learning rate after warm-up: the same to the end, or after `hold_steps` linearly down to zero."""

    CONSTANT = "constant"
    LINEAR = "linear"


class Fidelity(Value):
    """One training: `steps` optimiser steps of `batch_size` examples. Proxy and full training differ only here."""

    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    seed: int = Field(ge=0)
    schedule: Schedule = Schedule.CONSTANT
    warmup_steps: int = Field(ge=0, default=0)
    hold_steps: int = Field(ge=0, default=0)
    validation_examples: int = Field(ge=1, default=128)

    @classmethod
    def proxy(cls, rungs: Sequence[int], *, batch_size: int, seed: int, validation_examples: int) -> Fidelity:
        """As a search trains its candidates, read at every one of `rungs` (steps, ascending).

        Whoever gets to the last rung goes no further, so on the way there the rate decays to zero, as in a full
        training: within width classes that ranks bands far better than as many steps at a constant rate
        (results/LOG.md). At the rungs below it is still the full rate, since a training that passes them goes on.
        """
        return cls(
            steps=rungs[-1],
            batch_size=batch_size,
            seed=seed,
            schedule=Schedule.LINEAR,
            warmup_steps=min(10, rungs[0] // 10),
            hold_steps=rungs[-2] if len(rungs) > 1 else 0,
            validation_examples=validation_examples,
        )

    @classmethod
    def final(cls, steps: int, *, batch_size: int, seed: int, validation_examples: int) -> Fidelity:
        """As the winner is trained in the end, and finalists in confirmation."""
        return cls(
            steps=steps,
            batch_size=batch_size,
            seed=seed,
            schedule=Schedule.LINEAR,
            warmup_steps=min(10, steps // 10),
            validation_examples=validation_examples,
        )

    def learning_rate_factor(self, step: int) -> float:
        """The share of the candidate's learning rate used at `step` (counted from 0)."""
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        if self.schedule is Schedule.CONSTANT:
            return 1.0
        begin = max(self.warmup_steps, self.hold_steps)
        return min(1.0, max(0.0, (self.steps - step) / max(1, self.steps - begin)))
