"""Residuals: what is left of a training once its entry's mean and its seed's effect are taken out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
# Arms whose residuals a training draws from.
NEIGHBOURS = 4


@dataclass(frozen=True, eq=False)
class Residuals:
    """By learning rate, in the order of the arms' mean full losses: these means, and of every arm what its seeds leave,
    of shape (seeds, columns), scaled up for the mean that was taken out.

    Noise goes by rate and by loss: at a high rate some arms train as well on every seed, some break off on one of three
    and some on all. Dealt out to all of a rate, what an arm that broke off once has below its own mean would be losses
    below zero to those that never do.
    """

    by_rate: Mapping[float, tuple[Array, tuple[Array, ...]]]

    @classmethod
    def of(cls, trainings: Mapping[float, list[Array]]) -> Residuals:
        """From the losses of every arm on more than one seed, seed effects taken out, by learning rate."""
        found: dict[float, tuple[Array, tuple[Array, ...]]] = {}
        for rate, arms in trainings.items():
            ordered = sorted(arms, key=lambda losses: float(losses[:, -1].mean()))
            means = np.array([losses[:, -1].mean() for losses in ordered])
            found[rate] = means, tuple(_scaled(losses) for losses in ordered)
        return cls(found)

    def like(self, rate: float, loss: float) -> Array:
        """Of the arms at this rate (or, without one, at the nearest) whose mean full loss is nearest to `loss`; of
        shape (trainings, columns), without a row where nothing was trained on two seeds."""
        if not self.by_rate:
            return np.empty((0, 0))
        nearest = min(self.by_rate, key=lambda other: abs(math.log(other / rate)))
        means, arms = self.by_rate[nearest]
        places = np.argsort(np.abs(means - loss), kind="stable")[:NEIGHBOURS]
        return np.concatenate([arms[place] for place in places])


def _scaled(losses: Array) -> Array:
    return np.asarray((losses - losses.mean(axis=0)) * math.sqrt(len(losses) / (len(losses) - 1)))
