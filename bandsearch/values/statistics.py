"""Paired bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bandsearch.values.evaluation import Interval

_CHUNK = 1_000_000


def paired_bootstrap(
    differences: Sequence[float], level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """The mean of per-example differences with its percentile bootstrap interval (Efron 1979).

    Deterministic. Fewer than two examples, or equal ones, give an interval of no width. Raises ValueError for none.
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.size == 0:
        raise ValueError("a bootstrap needs at least one difference")
    mean = float(values.mean())
    if values.size == 1 or float(np.ptp(values)) == 0.0:
        return Interval(mean=mean, low=mean, high=mean, level=level)
    generator = np.random.default_rng(seed)
    rows = max(1, _CHUNK // values.size)
    means = np.concatenate(
        [
            values[generator.integers(0, values.size, (min(rows, resamples - begin), values.size))].mean(axis=1)
            for begin in range(0, resamples, rows)
        ]
    )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean=mean, low=float(low), high=float(high), level=level)
