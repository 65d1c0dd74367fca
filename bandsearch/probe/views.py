"""The measures behind the three views of arXiv 2604.11838: information, geometry and optimisation of one layer.

Pure functions of matrices whose rows are tokens. All sums are done in float64: differences between a base model and
a briefly tuned one are small.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def matrix_entropy(states: Tensor) -> float:
    """Von Neumann entropy of the token Gram matrix, between 0 (all rows on one line) and 1 (all directions alike).

    `states` is (n, d). With p the eigenvalues of Z Z^T divided by its trace, -sum p log p / log min(n, d): the matrix
    entropy of order alpha = 1 (arXiv 2412.09563), normalised. 0 where min(n, d) is 1 or all states are zero.
    """
    smaller = min(states.shape)
    if smaller < 2:
        return 0.0
    return _entropy(_gram_eigenvalues(states)) / math.log(smaller)


def effective_rank(states: Tensor) -> float:
    """exp of the entropy of the singular values divided by their sum (Roy and Vetterli, EUSIPCO 2007).

    `states` is (n, d), not centred. Between 1 and min(n, d); the number of directions where all are equally strong.
    """
    return math.exp(_entropy(_gram_eigenvalues(states).sqrt()))


def linear_cka(left: Tensor, right: Tensor) -> float:
    """Linear centred kernel alignment (Kornblith et al., arXiv 1905.00414) of (n, d) with (n, e), from 0 to 1.

    ||Y^T X||_F^2 / (||X^T X||_F ||Y^T Y||_F) with centred columns; unchanged by rotation and uniform scale of either
    side. 1 where neither side varies over the rows, 0 where only one does.
    """
    x, y = (_centred(side) for side in (left, right))
    own = _alignment(x, x) * _alignment(y, y)
    if own == 0:
        return float(not x.any() and not y.any())
    return min(1.0, _alignment(x, y) / math.sqrt(own))


def mean_cosine(left: Tensor, right: Tensor) -> float:
    """Mean over rows of the cosine between the two (n, d) matrices' rows, from -1 to 1."""
    x, y = left.double(), right.double()
    products = (x * y).sum(dim=1)
    norms = x.norm(dim=1) * y.norm(dim=1)
    return float((products / norms.clamp_min(1e-300)).clamp(-1, 1).mean())


def curvature(states: Tensor) -> float:
    """Mean angle between successive steps of one sequence's path through the layer, divided by pi: 0 straight, 1 back.

    `states` is (tokens, d) in the order of the sequence. Steps of length zero have no direction and are left out; 0 for
    fewer than two steps.
    """
    steps = states.double().diff(dim=0)
    lengths = steps.norm(dim=1)
    moving = lengths > 0
    directions = steps[moving] / lengths[moving, None]
    if len(directions) < 2:
        return 0.0
    cosines = (directions[:-1] * directions[1:]).sum(dim=1).clamp(-1, 1)
    return float(torch.arccos(cosines).mean() / math.pi)


def update_norm(a: Tensor, b: Tensor, scale: float) -> float:
    """||scale B A||_F for A (rank, in) and B (out, rank), without making the (out, in) product.

    ||B A||_F^2 = tr(A^T B^T B A) = sum of (B^T B) * (A A^T), both (rank, rank).
    """
    a, b = a.double(), b.double()
    return abs(scale) * math.sqrt(max(0.0, float(((b.T @ b) * (a @ a.T)).sum())))


def _gram_eigenvalues(states: Tensor) -> Tensor:
    z = states.double()
    gram = z @ z.T if z.shape[0] <= z.shape[1] else z.T @ z
    return torch.linalg.eigvalsh(gram).clamp_min(0)


def _entropy(weights: Tensor) -> float:
    total = float(weights.sum())
    if total == 0:
        return 0.0
    p = weights / total
    return max(0.0, float(torch.special.entr(p).sum()))


def _centred(states: Tensor) -> Tensor:
    states = states.double()
    centred = states - states.mean(dim=0)
    # Equal rows leave rounding errors of the mean behind, which are no variation.
    return centred if centred.norm() > 1e-12 * states.norm() else torch.zeros_like(centred)


def _alignment(x: Tensor, y: Tensor) -> float:
    """||Y^T X||_F^2, through whichever product is smaller."""
    if x.shape[0] < max(x.shape[1], y.shape[1]):
        return float(((x @ x.T) * (y @ y.T)).sum())
    return float((y.T @ x).square().sum())
