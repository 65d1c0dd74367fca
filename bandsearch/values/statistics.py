"""Intervals of paired differences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from bandsearch.values.evaluation import Interval

_CHUNK = 1_000_000
FEW = 30


def paired_bootstrap(
    differences: Sequence[float], level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """The mean of per-example differences with its percentile bootstrap interval (Efron 1979).

    Deterministic. Of fewer than FEW examples the percentiles are too narrow (of five, one interval in twelve lies
    wholly on the wrong side), so the interval is Student's t; a single one shows no sign, so its interval reaches
    to the other side of zero. Equal differences, two or more, give an interval of no width. Raises ValueError for none.
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.size == 0:
        raise ValueError("a bootstrap needs at least one difference")
    mean = float(values.mean())
    if values.size == 1:
        return Interval(mean=mean, low=-abs(mean), high=abs(mean), level=level)
    if float(np.ptp(values)) == 0.0:
        return Interval(mean=mean, low=mean, high=mean, level=level)
    if values.size < FEW:
        half = float(stats.t.ppf((1 + level) / 2, values.size - 1) * values.std(ddof=1) / np.sqrt(values.size))
        return Interval(mean=mean, low=mean - half, high=mean + half, level=level)
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
