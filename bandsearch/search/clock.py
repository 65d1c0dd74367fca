"""A clock for one stage: what still fits before its deadline."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from bandsearch.values.plan import Costs

# Steps differ in their sequence lengths, and other work shares the machine.
MARGIN = 1.15


class Clock:
    """Reads the wall time left (seconds, infinite without a deadline) and knows what trainings cost."""

    def __init__(self, wall_left: Callable[[], float], costs: Costs) -> None:
        self._wall_left, self._costs = wall_left, costs
        self._start = max(0.0, wall_left())

    @property
    def left(self) -> float:
        return self._wall_left()

    @property
    def training_left(self) -> float | None:
        """Seconds that may be trained so that a validation still ends in time; None without a deadline."""
        return None if math.isinf(self.left) else max(0.0, self.left - self.seconds(0))

    @property
    def training_deadline(self) -> float | None:
        """The same on the monotonic clock, which all processes of this machine share and nobody sets."""
        return None if self.training_left is None else time.monotonic() + self.training_left

    @property
    def used_share(self) -> float | None:
        """The part of the stage's time that has passed; None without a deadline."""
        if math.isinf(self._start):
            return None
        return 1.0 if self._start == 0 else min(1.0, max(0.0, 1 - self.left / self._start))

    def fits(self, steps: int) -> bool:
        """Whether `steps` more steps and a validation end in time, at the measured cost of full-depth LoRA."""
        return self.seconds(steps) <= self.left

    def rounds(self, steps: int) -> float:
        """How many trainings of `steps` steps fit one after the other; infinite without a deadline."""
        return math.inf if math.isinf(self.left) else max(0.0, self.left // self.seconds(steps))

    def seconds(self, steps: int) -> float:
        """Upper bound of `steps` steps and a validation of a candidate that shares its passes with others."""
        return MARGIN * (steps * self._costs.seconds_per_packed_step + self._costs.seconds_per_validation)
