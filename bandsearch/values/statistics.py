"""Intervals of paired differences."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from bandsearch.values.evaluation import Interval

_CHUNK = 1_000_000
FEW = 30


def paired_bootstrap(
    differences: Sequence[float],
    *,
    weights: Sequence[float] | None = None,
    groups: Sequence[Hashable] | None = None,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """The weighted mean of per-example differences with its percentile bootstrap interval (Efron 1979).

    What is resampled are whole groups (Field and Welsh 2007): ten answers to one question are not ten independent
    examples. By default every example weighs the same and is a group of its own.

    Deterministic. Of fewer than FEW groups the percentiles are too narrow (of five, one interval in twelve lies
    wholly on the wrong side), so the interval is Student's t; a single one shows no sign, so its interval reaches
    to the other side of zero. Equal differences, in two groups or more, give an interval of no width. Raises ValueError
    for none.
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.size == 0:
        raise ValueError("a bootstrap needs at least one difference")
    each = np.ones_like(values) if weights is None else np.asarray(weights, dtype=np.float64)
    owner, count = _owners(values.size, groups)
    sums, sizes = np.bincount(owner, each * values, count), np.bincount(owner, each, count)
    mean = float(sums.sum() / sizes.sum())
    if count == 1:
        return Interval(mean=mean, low=-abs(mean), high=abs(mean), level=level)
    if float(np.ptp(values)) == 0.0:
        return Interval(mean=mean, low=mean, high=mean, level=level)
    if count < FEW:
        # Of a ratio of two means, linearised; of groups of one size, the usual error of a mean.
        error = float(np.sqrt(count / (count - 1) * np.square(sums - mean * sizes).sum()) / sizes.sum())
        half = float(stats.t.ppf((1 + level) / 2, count - 1)) * error
        return Interval(mean=mean, low=mean - half, high=mean + half, level=level)
    generator = np.random.default_rng(seed)
    rows = max(1, _CHUNK // count)
    means = []
    for begin in range(0, resamples, rows):
        drawn = generator.integers(0, count, (min(rows, resamples - begin), count))
        means.append(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean=mean, low=float(low), high=float(high), level=level)


def paired_proportions(differences: Sequence[float], *, groups: Sequence[Hashable] | None = None) -> Interval:
    """The difference of two shares of right answers with its interval, from per-example differences of -1, 0 or 1.

    Where few examples differ, resampling hardly ever leaves them all out, and takes four in one direction for a proof.
    So an interval that McNemar's exact test (1947) does not bear out reaches to zero.
    """
    found = paired_bootstrap(differences, groups=groups)
    owner, count = _owners(len(differences), groups)
    signs = np.sign(np.bincount(owner, np.asarray(differences, dtype=np.float64), count))
    up, down = int((signs > 0).sum()), int((signs < 0).sum())
    if not up + down or stats.binomtest(up, up + down).pvalue < 1 - found.level:
        return found
    return found.model_copy(update={"low": min(found.low, 0.0), "high": max(found.high, 0.0)})


def _owners(size: int, groups: Sequence[Hashable] | None) -> tuple[NDArray[np.int64], int]:
    """The number of every example's group, (examples,), and how many groups there are."""
    numbers: dict[Hashable, int] = {}
    owner = [numbers.setdefault(group, len(numbers)) for group in (range(size) if groups is None else groups)]
    return np.array(owner, dtype=np.int64), len(numbers)
