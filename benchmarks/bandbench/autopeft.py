"""A multi-objective Bayesian search in the manner of AutoPEFT (arXiv 2301.12132), over the options of a table.

A Gaussian process on layers on or off, log rank, targets and log rate; the next one has the largest expected
improvement of the hypervolume under loss and trainable parameters. The parameters are known, so that is a sum of
expected improvements of the loss over the steps of the front. A Matérn kernel whose scales are chosen by marginal
likelihood from a grid stands in for the SAAS prior.
"""

from __future__ import annotations

import functools
import itertools
import math
import random

import numpy as np
from numpy.typing import NDArray
from scipy import special
from scipy.linalg import cho_solve, cholesky

from benchmarks.bandbench.table import Table

Array = NDArray[np.float64]

STARTUP = 10
REFIT_EVERY = 5
# Of layers (in layers), of everything else (in units of its range), and noise as a share of the variance.
LAYER_SCALES, OTHER_SCALES, NOISES = (1.5, 3.0, 6.0), (0.7, 2.0), (0.01, 0.1)


class AutoPeft:
    """Ask and tell by index of a table's option; every option at most once."""

    def __init__(self, table: Table, seed: int) -> None:
        self._source = random.Random(f"autopeft {seed}")
        self._parameters = np.array([option.parameters for option in table.options], dtype=float)
        self._layer_distance, self._other_distance = _distances(table)
        self._tried: list[int] = []
        self._losses: list[float] = []
        self._kernel = (LAYER_SCALES[1], OTHER_SCALES[0], NOISES[0])
        self._known, self._known_kernel = np.empty((0, 0)), (0.0, 0.0, 0.0)

    def ask(self) -> int | None:
        left = sorted(set(range(len(self._parameters))) - set(self._tried))
        if not left:
            return None
        if len(self._tried) < STARTUP or sum(map(math.isfinite, self._losses)) < 3:
            return self._source.choice(left)
        return left[int(np.argmax(self._gain(np.array(left))))]

    def tell(self, option: int, loss: float) -> None:
        self._tried.append(option)
        self._losses.append(loss)

    def _gain(self, left: NDArray[np.intp]) -> Array:
        """Expected improvement of the hypervolume, in standardised loss times the share of parameters."""
        losses = np.array(self._losses)
        worst = losses[np.isfinite(losses)].max()
        # What diverged is as bad as the worst: infinity fits no process.
        values = np.where(np.isfinite(losses), losses, worst)
        spread = values.std() or 1.0
        values = (values - values.mean()) / spread
        tried = np.array(self._tried)
        if len(tried) % REFIT_EVERY == 0:
            grid = itertools.product(LAYER_SCALES, OTHER_SCALES, NOISES)
            self._kernel = max(grid, key=lambda kernel: self._evidence(tried, values, kernel))
        factor = cholesky(self._covariance(tried, tried, self._kernel, noisy=True), lower=True)
        cross = self._columns()[left]
        mean = cross @ cho_solve((factor, True), values)
        variance = 1.0 - np.einsum("ij,ij->i", cross, cho_solve((factor, True), cross.T).T)
        return self._hypervolume(mean, np.sqrt(np.maximum(variance, 1e-9)), self._parameters[left], tried, values)

    def _columns(self) -> Array:
        """Of all options with those tried, of which one is new unless the kernel is."""
        if self._known_kernel != self._kernel:
            self._known, self._known_kernel = np.empty((len(self._parameters), 0)), self._kernel
        every, new = np.arange(len(self._parameters)), np.array(self._tried[self._known.shape[1] :], dtype=np.intp)
        self._known = np.hstack([self._known, self._covariance(every, new, self._kernel)])
        return self._known

    def _hypervolume(
        self, mean: Array, deviation: Array, sizes: Array, tried: NDArray[np.intp], values: Array
    ) -> Array:
        """The front is a staircase: from each size on, the lowest loss of anything that is not larger."""
        reference = float(values.max())
        order = np.argsort(self._parameters[tried], kind="stable")
        edges = self._parameters[tried][order]
        levels = np.minimum.accumulate(values[order])
        largest = float(self._parameters.max())
        begins = np.concatenate([[0.0], edges])
        ends = np.concatenate([edges, [largest]])
        heights = np.concatenate([[reference], np.minimum(levels, reference)])
        widths = np.maximum(0.0, ends[None, :] - np.maximum(begins[None, :], sizes[:, None])) / largest
        z = (heights[None, :] - mean[:, None]) / deviation[:, None]
        improvement = deviation[:, None] * (z * special.ndtr(z) + np.exp(-(z**2) / 2.0) / math.sqrt(2 * math.pi))
        # The largest size has no width behind it; a sliver lets it improve the loss all the same.
        widths[:, -1] += 1e-3
        return np.asarray((widths * improvement).sum(axis=1))

    def _covariance(
        self, rows: NDArray[np.intp], columns: NDArray[np.intp], kernel: tuple[float, float, float], noisy: bool = False
    ) -> Array:
        layer_scale, other_scale, noise = kernel
        at = np.ix_(rows, columns)
        distance = np.sqrt(5 * (self._layer_distance[at] / layer_scale**2 + self._other_distance[at] / other_scale**2))
        covariance = (1 + distance + distance**2 / 3) * np.exp(-distance)
        return covariance + (noise + 1e-8) * np.eye(len(rows)) if noisy else covariance

    def _evidence(self, tried: NDArray[np.intp], values: Array, kernel: tuple[float, float, float]) -> float:
        factor = cholesky(self._covariance(tried, tried, kernel, noisy=True), lower=True)
        fit = values @ cho_solve((factor, True), values)
        return float(-0.5 * fit - np.log(np.diag(factor)).sum())


@functools.lru_cache(maxsize=8)
def _distances(table: Table) -> tuple[Array, Array]:
    """Squared, between all options: in layers, and in everything else."""
    layers, others = _features(table)
    by_layer = (layers[:, None, :] != layers[None, :, :]).sum(axis=2).astype(float)
    return by_layer, ((others[:, None, :] - others[None, :, :]) ** 2).sum(axis=2)


def _features(table: Table) -> tuple[NDArray[np.bool_], Array]:
    layers = np.zeros((len(table.options), table.layer_count), dtype=bool)
    others = np.zeros((len(table.options), 2 + len(table.targets)))
    for index, option in enumerate(table.options):
        layers[index, list(option.entry.layers)] = True
        others[index, 0] = _place(math.log(option.entry.rank), [math.log(rank) for rank in table.ranks])
        rates = [math.log(rate) for rate in table.rates]
        others[index, 1] = _place(math.log(option.candidate.learning_rate), rates)
        others[index, 2 + table.targets.index(option.entry.targets)] = 0.7
    return layers, others


def _place(value: float, among: list[float]) -> float:
    span = max(among) - min(among)
    return (value - min(among)) / span if span else 0.0
