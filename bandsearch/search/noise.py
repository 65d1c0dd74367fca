"""Noise: what a seed does to a loss, told from what the contenders differ by. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

import numpy as np
from numpy.typing import NDArray
from scipy import stats

# Chance of taking anyone for noisier than the others where all are alike. The test's reference is a median, which is
# worth about half of its degrees of freedom (by simulation); of fewer than four contenders it says nothing.
NOISIER, EFFICIENCY, FEWEST = 0.05, 0.5, 4


@dataclass(frozen=True)
class Noise:
    """Means and their uncertainty under loss = contender + seed + noise, by least squares.

    The contenders share their seeds, so what a seed does to all of them cancels; the noise is alike for all and pooled
    over all of them, so a few seeds each are enough. Only who is clearly noisier than the others, as at a rate that is
    barely stable, has a noise of its own. `covariance` is that of the means; `sigma` is the pooled standard deviation,
    `freedom` its degrees of freedom; 0 means that it is unknown.
    """

    means: NDArray[np.floating]
    covariance: NDArray[np.floating]
    sigma: float
    freedom: int

    @classmethod
    def of(cls, losses: Sequence[Mapping[int, float]]) -> Noise:
        """From the losses of every contender by seed, of each at least one."""
        noisier = _noisier(losses)
        alike = [index for index in range(len(losses)) if index not in noisier]
        fit = _Fit.of([losses[index] for index in alike])
        means, covariance = np.zeros(len(losses)), np.zeros((len(losses), len(losses)))
        means[alike] = fit.means
        covariance[np.ix_(alike, alike)] = fit.sigma**2 * fit.inverse
        for index in noisier:
            own = [loss - fit.seeds.get(seed, 0.0) for seed, loss in losses[index].items()]
            means[index] = np.mean(own)
            covariance[index, index] = np.var(own, ddof=1) / len(own)
        return cls(means, covariance, fit.sigma, fit.freedom)

    def difference(self, one: int, other: int) -> float:
        return float(self.means[one] - self.means[other])

    def standard_error(self, one: int, other: int) -> float:
        """Of the difference of two means."""
        spread = self.covariance[one, one] + self.covariance[other, other] - 2 * self.covariance[one, other]
        return float(np.sqrt(max(spread, 0.0)))

    def quantile(self, level: float) -> float:
        return float(stats.t.ppf(level, self.freedom))


@dataclass(frozen=True)
class _Fit:
    """`inverse`: covariance of the means in units of the noise."""

    means: NDArray[np.floating]
    seeds: Mapping[int, float]
    inverse: NDArray[np.floating]
    sigma: float
    freedom: int

    @classmethod
    def of(cls, losses: Sequence[Mapping[int, float]]) -> _Fit:
        seeds, count = sorted(set().union(*losses)), len(losses)
        rows, values = [], []
        for index, by_seed in enumerate(losses):
            for seed, loss in by_seed.items():
                row = np.zeros(count + len(seeds))
                row[index] = 1.0
                row[count + seeds.index(seed)] = 1.0
                rows.append(row)
                values.append(loss)
        design, observed = np.array(rows), np.array(values)
        # The pseudo-inverse settles the constant that contenders and seeds could trade; differences do not feel it.
        inverse = np.linalg.pinv(design.T @ design)
        effects = inverse @ design.T @ observed
        freedom = len(observed) - int(np.linalg.matrix_rank(design))
        residual = observed - design @ effects
        # Of a contender over all seeds alike.
        mean = np.hstack([np.eye(count), np.full((count, len(seeds)), 1 / len(seeds))])
        shared = float(effects[count:].mean())
        return cls(
            means=mean @ effects,
            seeds={seed: float(effect) - shared for seed, effect in zip(seeds, effects[count:], strict=True)},
            inverse=mean @ inverse @ mean.T,
            sigma=float(np.sqrt(residual @ residual / freedom)) if freedom > 0 else float("nan"),
            freedom=freedom,
        )


def shared_differences(one: Mapping[int, float], other: Mapping[int, float]) -> list[float]:
    """What `one` lost more than `other`, by every seed that both have."""
    return [one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())]


def is_ahead(one: Mapping[int, float], other: Mapping[int, float]) -> bool | None:
    """Whether `one` is no worse on the seeds that both have; None where they share none.

    A mean over more seeds is not to lose against a single lucky one.
    """
    found = shared_differences(one, other)
    return sum(found) <= 0 if found else None


def _noisier(losses: Sequence[Mapping[int, float]]) -> set[int]:
    """Those that are noisier than chance explains (F test, corrected for their number) where half of them are alike.

    Against the median of what the contenders vary by, once what a seed does to the median one is taken out: several
    that are barely stable would hide behind each other in a mean.
    """
    able = [index for index, by_seed in enumerate(losses) if len(by_seed) > 1]
    found: set[int] = set()
    if len(able) < FEWEST:
        return found
    while alike := [index for index in able if index not in found]:
        centred = {index: _centred(losses[index]) for index in alike}
        seeds = set().union(*centred.values())
        effects = {seed: median(each[seed] for each in centred.values() if seed in each) for seed in seeds}
        freedom = {index: len(each) - 1 for index, each in centred.items()}
        variance = {}
        for index, each in centred.items():
            left = _centred({seed: loss - effects[seed] for seed, loss in each.items()})
            variance[index] = sum(loss**2 for loss in left.values()) / freedom[index]
        usual = median(variance[index] * freedom[index] / stats.chi2.median(freedom[index]) for index in alike)
        level, everything = 1 - NOISIER / len(alike), EFFICIENCY * sum(freedom.values())
        more = {index for index in alike if variance[index] > usual * stats.f.ppf(level, freedom[index], everything)}
        if not more or usual == 0:
            return found
        found |= more
    return found


def _centred(by_seed: Mapping[int, float]) -> dict[int, float]:
    mean = fmean(by_seed.values())
    return {seed: loss - mean for seed, loss in by_seed.items()}
