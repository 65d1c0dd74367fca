"""How much the probe does: fixed counts, or as much of them as fits before a deadline."""

from __future__ import annotations

import time

from pydantic import Field

from bandsearch.values.plan import Costs
from bandsearch.values.space import SearchSpace
from bandsearch.values.value import Value

# Of everything that the probe trains.
RANK = 8
# Of the deadline; the rest is for what is not measured in steps.
PLANNED_SHARE = 0.75
# Single examples use an accelerator badly: one alone costs this much of a step, forward and backward.
STEPS_PER_SINGLE = 0.3
# A forward pass without gradients, in steps of the same number of rows.
FORWARD = 1 / 3


class ProbeSettings(Value):
    """`space` is the one that is searched: under another alpha other rates are best. `deadline` is in seconds from the
    start of the probe; without one the counts are fixed and nothing depends on time.
    """

    seed: int = Field(ge=0)
    batch_size: int = Field(ge=1)
    space: SearchSpace
    costs: Costs
    deadline: float | None = Field(default=None, gt=0)


class Effort(Value):
    """Counts of everything the probe repeats. The defaults are what it does without a deadline."""

    gradient_examples: int = 48
    range_runs: int = 7
    range_steps: int = 12
    short_steps: int = 30
    view_examples: int = 16
    validation_examples: int = 32

    def steps(self, layer_count: int, batch_size: int) -> float:
        """The cost of all of it in training steps; every layer is masked twice, and bands in four widths."""
        passes = self.validation_examples / batch_size * FORWARD
        masked = 2 * layer_count + 4 * min(8, layer_count)
        singles = self.gradient_examples + 2 * FORWARD * self.view_examples
        trained = self.range_runs * self.range_steps + self.short_steps
        return trained + singles * STEPS_PER_SINGLE + (self.range_runs + 1 + masked) * passes


LEAST = Effort(gradient_examples=6, range_runs=3, range_steps=3, short_steps=6, view_examples=4, validation_examples=8)


def effort_for(settings: ProbeSettings, layer_count: int) -> Effort:
    """The full effort, or the largest equal share of every count that fits, but not below LEAST."""
    full = Effort()
    if settings.deadline is None:
        return full
    available = PLANNED_SHARE * settings.deadline / settings.costs.seconds_per_step
    counts, least = full.model_dump(), LEAST.model_dump()
    for percent in range(100, 0, -5):
        share = {name: max(least[name], round(count * percent / 100)) for name, count in counts.items()}
        effort = Effort(**share)
        if effort.steps(layer_count, settings.batch_size) <= available:
            return effort
    return LEAST


class Stopwatch:
    """Time left until shares of the deadline. Without a deadline there is always time, and no clock is read."""

    def __init__(self, deadline: float | None) -> None:
        self._deadline = deadline
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def left(self, share: float) -> float | None:
        """Seconds until `share` of the deadline has passed, at least 0; None without a deadline."""
        return None if self._deadline is None else max(0.0, share * self._deadline - self.seconds)

    def allows(self, share: float, seconds: float = 0.0) -> bool:
        """Whether something that takes `seconds` ends before `share` of the deadline has passed."""
        left = self.left(share)
        return left is None or left > seconds
