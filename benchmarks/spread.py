"""Spread: what a figure is usually, and between which values it was measured; how steady the machine was meanwhile."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from bandsearch.values.value import Value
from benchmarks.job import Trained

# Where the same work took so many times as long when it was measured again, something else had the machine.
DISTURBED = 1.15


class Spread(Value):
    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """At least one value."""
        return cls(median=statistics.median(values), low=min(values), high=max(values))

    def divided(self, by: float) -> Spread:
        return Spread(median=self.median / by, low=self.low / by, high=self.high / by)

    @property
    def is_disturbed(self) -> bool:
        return self.high > DISTURBED * self.low


def repeats(trials: Sequence[Trained]) -> Spread:
    """Seconds of the candidates that were trained more than once, each by its shortest: 1 is as steady as can be.

    Raises ValueError where none was.
    """
    seconds: dict[str, list[float]] = {}
    for trial in trials:
        seconds.setdefault(trial.candidate.identity, []).append(trial.seconds)
    return Spread.of([each / min(some) for some in seconds.values() if len(some) > 1 for each in some])
