"""Residuals: what a training ends above or below where trainings of its kind usually end.

Noise has two parts. A seed moves every loss a little; and at a high rate a training now and then breaks off and ends
far above all others. So losses are told from a centre that one broken training of three does not move, and not from a
mean: below that all that did not break off would seem lucky, and dealt out to others that luck would be losses that no
training has. For the same reason a training that breaks off, or alone does not, ends where another one did.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
# Arms that a training is drawn from.
NEIGHBOURS = 8
# Of two trainings that lie further apart than so many quiet distances one has broken off.
BROKEN = 6.0
# What takes the deviation from the median of three, or from the mean of two, to that of a single one (normal).
OF_THREE, OF_TWO = 1.13, math.sqrt(2)


@dataclass(frozen=True, eq=False)
class Residuals:
    """By learning rate the arms on more than one seed, each with its losses, of shape (seeds, columns), without seed
    effects. `quiet`: how far apart the losses of an arm lie, by column, at the rate where they lie closest."""

    by_rate: Mapping[float, Sequence[Array]]
    quiet: Array

    @classmethod
    def of(cls, by_rate: Mapping[float, Sequence[Array]], columns: int) -> Residuals:
        distances = [np.median([np.ptp(losses, axis=0) for losses in arms], axis=0) for arms in by_rate.values()]
        return cls(by_rate, np.min(distances, axis=0) if distances else np.full(columns, math.inf))

    @functools.cached_property
    def _ends(self) -> Mapping[float, Array]:
        """The full losses of the arms' centres."""
        return {rate: np.array([self.centre(losses)[-1] for losses in arms]) for rate, arms in self.by_rate.items()}

    def centre(self, losses: Array) -> Array:
        """By column the median of three and more, the mean of two, or the lower one where the other has broken off.
        `losses`: of shape (seeds, columns)."""
        if len(losses) == 2 and np.ptp(losses[:, -1]) > BROKEN * self.quiet[-1]:
            return np.asarray(losses[losses[:, -1].argmin()])
        return np.asarray(np.median(losses, axis=0))

    def outcomes(self, rate: float, centre: Array) -> Array:
        """Where trainings end whose centre that is, of shape (trainings, columns), as those of the arms at this rate
        (or, without one, at the nearest) whose centres end nearest; without a row where nothing was trained on two
        seeds."""
        if not self.by_rate or not np.all(np.isfinite(centre)):
            return np.empty((0, len(centre)))
        nearest = min(self.by_rate, key=lambda other: abs(math.log(other / rate)))
        places = np.argsort(np.abs(self._ends[nearest] - centre[-1]), kind="stable")[:NEIGHBOURS]
        return np.concatenate([self._moved(self.by_rate[nearest][place], centre) for place in places])

    def spread(self, rate: float, centre: Array) -> float:
        """The standard deviation of full losses around that centre, of trainings that do not break off; not a number
        where nothing is known."""
        left = np.abs(self.outcomes(rate, centre)[:, -1] - centre[-1])
        kept = left[left <= BROKEN * OF_TWO * self.quiet[-1]]
        return float(np.sqrt(np.mean(kept**2))) if len(kept) else math.nan

    def _moved(self, losses: Array, centre: Array) -> Array:
        """An arm's losses around another centre, scaled up for what its own has taken out."""
        left = losses - self.centre(losses)
        is_broken = np.abs(left) > BROKEN * self.quiet
        scale = OF_THREE if len(losses) > 2 else 1.0 if np.any(is_broken[:, -1]) else OF_TWO
        return np.asarray(np.where(is_broken, losses, centre + scale * left))
