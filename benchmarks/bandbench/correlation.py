"""Rank correlation over all bands and among bands of equal width: width alone predicts a short table well."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

LEAST = 3


def spearman(one: Sequence[float], other: Sequence[float]) -> float | None:
    """None for fewer than three pairs, or where one side does not vary."""
    if len(one) < LEAST or np.ptp(one) == 0 or np.ptp(other) == 0:
        return None
    return float(stats.spearmanr(one, other).statistic)


def within(one: Sequence[float], other: Sequence[float], groups: Sequence[object]) -> float | None:
    """The mean of the groups' correlations, weighted by their size."""
    found: list[tuple[int, float]] = []
    for group in dict.fromkeys(groups):
        members = [index for index, each in enumerate(groups) if each == group]
        rho = spearman([one[index] for index in members], [other[index] for index in members])
        if rho is not None:
            found.append((len(members), rho))
    return sum(size * rho for size, rho in found) / sum(size for size, _ in found) if found else None
