"""Noise: what a seed does to a loss, told from what the contenders differ by. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

# Chance of taking anyone for noisier than the others where all are alike, and how many are left to be alike.
NOISIER, FEWEST_ALIKE = 0.05, 2


@dataclass(frozen=True)
class Noise:
    """Means and their uncertainty under loss = contender + seed + noise, by least squares.

    The contenders share their seeds, so what a seed does to all of them cancels; the noise is alike for all and pooled
    over all of them, so a few seeds each are enough. Only who is clearly noisier than the others (Cochran's C test), as
    at a rate that is barely stable, has a noise of its own. `covariance` is that of the means; `sigma` is the pooled
    standard deviation, `freedom` its degrees of freedom; 0 means that it is unknown.
    """

    means: NDArray[np.floating]
    covariance: NDArray[np.floating]
    sigma: float
    freedom: int

    @classmethod
    def of(cls, losses: Sequence[Mapping[int, float]]) -> Noise:
        """From the losses of every contender by seed, of each at least one."""
        alike = list(range(len(losses)))
        while True:
            fit = _Fit.of([losses[index] for index in alike])
            noisy = fit.noisier()
            if noisy is None:
                break
            del alike[noisy]
        means, covariance = np.zeros(len(losses)), np.zeros((len(losses), len(losses)))
        means[alike] = fit.means
        covariance[np.ix_(alike, alike)] = fit.sigma**2 * fit.inverse
        for index in set(range(len(losses))) - set(alike):
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
    """`inverse`: covariance of the means in units of the noise. `squares`, `counts`: of every contender's residuals."""

    means: NDArray[np.floating]
    seeds: Mapping[int, float]
    inverse: NDArray[np.floating]
    squares: NDArray[np.float64]
    counts: NDArray[np.integer]
    sigma: float
    freedom: int

    @classmethod
    def of(cls, losses: Sequence[Mapping[int, float]]) -> _Fit:
        seeds, count = sorted(set().union(*losses)), len(losses)
        owners, rows, values = [], [], []
        for index, by_seed in enumerate(losses):
            for seed, loss in by_seed.items():
                row = np.zeros(count + len(seeds))
                row[index] = 1.0
                row[count + seeds.index(seed)] = 1.0
                owners.append(index)
                rows.append(row)
                values.append(loss)
        design, observed = np.array(rows), np.array(values)
        # The pseudo-inverse settles the constant that contenders and seeds could trade; differences do not feel it.
        inverse = np.linalg.pinv(design.T @ design)
        effects = inverse @ design.T @ observed
        freedom = len(observed) - int(np.linalg.matrix_rank(design))
        residual = observed - design @ effects
        sigma = float(np.sqrt(residual @ residual / freedom)) if freedom > 0 else float("nan")
        # Of a contender over all seeds alike.
        mean = np.hstack([np.eye(count), np.full((count, len(seeds)), 1 / len(seeds))])
        shared = float(effects[count:].mean())
        return cls(
            means=mean @ effects,
            seeds={seed: float(effect) - shared for seed, effect in zip(seeds, effects[count:], strict=True)},
            inverse=mean @ inverse @ mean.T,
            squares=np.bincount(owners, weights=residual**2, minlength=count).astype(float),
            counts=np.bincount(owners, minlength=count),
            sigma=sigma,
            freedom=freedom,
        )

    def noisier(self) -> int | None:
        """Who has more of all squared residuals than chance explains; None if nobody has, or fewer than two are left.

        Cochran's C test (1941), for groups of the size of the one in question.
        """
        able = [index for index, count in enumerate(self.counts) if count > 1]
        if len(able) < FEWEST_ALIKE + 1:
            return None
        variances = self.squares[able] / (self.counts[able] - 1)
        place = int(variances.argmax())
        others, own = len(able) - 1, int(self.counts[able[place]]) - 1
        quantile = float(stats.f.ppf(1 - NOISIER / len(able), own, others * own))
        share = variances[place] / variances.sum() if variances.sum() > 0 else 0.0
        return able[place] if share > 1 / (1 + others / quantile) else None
