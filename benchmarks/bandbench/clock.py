"""The clock of a table: what a step of an entry takes where the machine does nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.optimize import linprog

from bandsearch.search.candidates import split_targets
from bandsearch.values.layout import Layout
from benchmarks.bandbench.entry import Entry

# Of the times that were measured the quantile that is taken: what else the machine did only adds to a time.
UNDISTURBED = 0.1


@dataclass(frozen=True)
class Clock:
    """Seconds of a step: some for any, some for every layer from the start of a band on, some for every linear module
    with an adapter. The frozen layers below the start cost nothing."""

    layout: Layout
    step: float
    layer: float
    module: float

    @classmethod
    def of(cls, layout: Layout, entries: Sequence[Entry], seconds: Sequence[float]) -> Clock:
        """From measured seconds a step, by quantile regression (Koenker and Bassett 1978)."""
        known = np.array([_features(layout, entry) for entry in entries])
        count, size = known.shape
        unit = sparse.identity(count)
        found = linprog(
            np.concatenate([np.zeros(size), np.full(count, UNDISTURBED), np.full(count, 1 - UNDISTURBED)]),
            A_eq=sparse.hstack([sparse.csr_matrix(known), unit, -unit]),
            b_eq=np.array(seconds),
        )
        return cls(layout, *map(float, found.x[:size]))

    def seconds(self, entry: Entry) -> float:
        return float(np.dot(_features(self.layout, entry), (self.step, self.layer, self.module)))


def _features(layout: Layout, entry: Entry) -> tuple[float, float, float]:
    modules = len(layout.targets(split_targets(entry.targets))) * len(entry.layers)
    return 1.0, layout.layer_count - entry.start, modules
