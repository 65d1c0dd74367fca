"""A world: one replay's draw of a table. Everything that is trained in it gets a loss with a stored seed's noise."""

from __future__ import annotations

import math
import random

import numpy as np

from bandsearch.values.candidate import Candidate
from benchmarks.bandbench.table import Table


class World:
    """`seed` is the replay's. In a `null` world no candidate is truly better than the best full-depth one: the full
    losses of those that are, or seem to be, are lifted to its.

    A training's noise depends on the replay, the candidate and its training seed, and on nothing else. Trainings on
    equal seeds share the seed's effect, as real ones share their data order.
    """

    def __init__(self, table: Table, seed: int, *, null: bool = False) -> None:
        self.table, self.seed = table, seed
        self._means = table.means
        if null:
            self._means = table.means.copy()
            self._means[:, -1] = np.maximum(table.full, table.full[table.full_depth])
        layers = [option.entry.layers for option in table.options]
        self._masks = np.zeros((len(layers), table.layer_count), dtype=bool)
        for index, each in enumerate(layers):
            self._masks[index, list(each)] = True
        self._rank = np.log2([option.entry.rank for option in table.options])
        self._rate = np.log10([option.candidate.learning_rate for option in table.options])
        self._targets = np.array([option.entry.targets for option in table.options])
        self._nearest: dict[Candidate, int] = {}

    def nearest(self, candidate: Candidate) -> int:
        """The option with the most similar layers; among these the same targets, then the nearest rank, then rate."""
        if candidate not in self._nearest:
            mask = np.zeros(self.table.layer_count, dtype=bool)
            mask[list(candidate.layers)] = True
            distance = 1e6 * (self._masks != mask).sum(axis=1)
            distance += 1e4 * (self._targets != "+".join(candidate.targets))
            distance += 1e2 * np.abs(self._rank - math.log2(candidate.rank))
            distance += np.abs(self._rate - math.log10(candidate.learning_rate))
            self._nearest[candidate] = int(distance.argmin())
        return self._nearest[candidate]

    def loss(self, candidate: Candidate, column: int, seed: int) -> float:
        """After training to a rung (`column`), or in full (-1); infinite where that diverges."""
        option = self.nearest(candidate)
        mean = float(self._means[option, column])
        if math.isinf(mean):
            return mean
        stored = random.Random(f"seed {self.seed} {seed}").randrange(len(self.table.effects))
        noise = float(self.table.effects[stored, column])
        pool = self.table.noise_like(option)
        if len(pool):
            drawn = random.Random(f"noise {self.seed} {candidate.identity} {seed}").randrange(len(pool))
            noise += float(pool[drawn, column])
        return mean + noise
