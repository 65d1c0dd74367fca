"""The candidates: a frozen list, stratified over start, width, rank, targets and learning rate."""

from __future__ import annotations

from bandsearch.values.band import Band
from bandsearch.values.candidate import Candidate

ALPHA = 32.0

# (start as a share of depth, width as a share of the layers from there on, rank, targets, learning rate). Every four
# in a row hold each start and each rank once, every twelve each start with each width.
FROZEN: tuple[tuple[float, float, int, str, float], ...] = (
    (0.25, 1.00, 4, "all", 1e-3),
    (0.75, 0.50, 8, "mlp", 2e-3),
    (0.00, 0.25, 16, "attention", 4e-3),
    (0.50, 1.00, 32, "all", 2e-3),
    (0.50, 0.50, 8, "attention", 4e-3),
    (0.25, 0.25, 16, "all", 2e-3),
    (0.75, 1.00, 32, "mlp", 1e-3),
    (0.00, 1.00, 4, "mlp", 2e-3),
    (0.00, 0.50, 32, "all", 1e-3),
    (0.75, 0.25, 4, "attention", 4e-3),
    (0.50, 0.25, 16, "mlp", 1e-3),
    (0.25, 0.50, 8, "attention", 2e-3),
    (0.75, 1.00, 16, "all", 4e-3),
    (0.00, 0.50, 8, "attention", 2e-3),
    (0.25, 0.25, 32, "mlp", 4e-3),
    (0.50, 0.50, 4, "all", 1e-3),
    (0.00, 0.25, 8, "mlp", 1e-3),
    (0.50, 1.00, 16, "attention", 4e-3),
    (0.75, 0.50, 4, "all", 2e-3),
    (0.25, 1.00, 32, "attention", 1e-3),
    (0.25, 0.50, 16, "mlp", 4e-3),
    (0.00, 1.00, 32, "attention", 1e-3),
    (0.50, 0.25, 8, "all", 2e-3),
    (0.75, 0.25, 4, "mlp", 1e-3),
)


def frozen_candidates(layer_count: int, count: int = len(FROZEN), rates: float = 1.0) -> tuple[Candidate, ...]:
    """The first `count`, fitted to a depth; learning rates times `rates`."""
    return tuple(
        candidate_at(round(start * layer_count), width, layer_count, rank, targets, rate * rates)
        for start, width, rank, targets, rate in FROZEN[:count]
    )


def candidate_at(start: int, width: float, layer_count: int, rank: int, targets: str, rate: float) -> Candidate:
    """`width` is a share of the layers from `start` on; at least one layer."""
    layers = max(1, round(width * (layer_count - start)))
    return Candidate(
        bands=(Band(start=start, stop=start + layers),),
        rank=rank,
        alpha=ALPHA,
        targets=(targets,),
        learning_rate=rate,
    )


def alike(start: int, layer_count: int, count: int, rates: float = 1.0) -> tuple[Candidate, ...]:
    """`count` candidates on all layers from `start` on: one cost, one boundary, different ranks and rates."""
    rows = [(rank, rate) for rate in (1e-3, 1.5e-3, 2e-3) for rank in (8, 16, 4, 32)]
    return tuple(
        candidate_at(start, 1.0, layer_count, rank, "all", rate * rates * (1 + index // len(rows) / 10))
        for index, (rank, rate) in enumerate((rows * (1 + count // len(rows)))[:count])
    )
