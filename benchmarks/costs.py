"""Floating-point operations of a trial: what the plain arms pay, what nobody can do without, and what a device does."""

from __future__ import annotations

import time
from collections.abc import Iterable

import torch

from bandsearch.engine.devices import DeviceInventory
from bandsearch.engine.kernels import Product, onednn_product, usual_product
from bandsearch.values.candidate import Candidate
from bandsearch.values.layout import Layout
from bandsearch.values.value import Value

# Rows of a product that is timed, and how often it is.
ROWS, PRODUCTS = 512, 30
# Dense bf16 operations per second, from the vendor's data sheets.
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}


class Volume(Value):
    """Weights that multiply, and tokens that go through them. Attention scores and LoRA factors are left out: small.

    `trained_positions` and `read_positions` are the supervised ones, whose logits the loss takes. `distinct_tokens` are
    those of all sequences that are trained or read, each counted once.
    """

    layer_parameters: int
    layers: int
    head_parameters: int
    trained_tokens: int
    trained_positions: int
    read_tokens: int
    read_positions: int
    distinct_tokens: int

    def plain_flops(self, candidate: Candidate) -> float:
        """Of one trial that runs the whole network: forward through all of it, backward down to the band's start.

        A weight costs 2 per token forward and 2 backward for the gradient of its input; frozen weights need no more.
        """
        head, layer = self.head_parameters, self.layer_parameters
        forward = 2 * (self.layers * layer + head)
        backward = 2 * ((self.layers - candidate.layers[0]) * layer + head)
        return float(self.trained_tokens * (forward + backward) + self.read_tokens * forward)

    def least_step_flops(self, candidate: Candidate) -> float:
        """Of the steps of one trial whose prefix states are there already: layers from the band's start on, logits that
        count."""
        return 2 * self._forward_flops(candidate, self.trained_tokens, self.trained_positions)

    def least_reading_flops(self, candidate: Candidate) -> float:
        """Of its evaluations alone."""
        return self._forward_flops(candidate, self.read_tokens, self.read_positions)

    def prefix_flops(self, candidates: Iterable[Candidate]) -> float:
        """Of the prefix states of all of them: every sequence once, up to the highest start."""
        highest = max(candidate.layers[0] for candidate in candidates)
        return 2.0 * self.distinct_tokens * highest * self.layer_parameters

    def _forward_flops(self, candidate: Candidate, tokens: int, positions: int) -> float:
        above = (self.layers - candidate.layers[0]) * self.layer_parameters
        return 2.0 * (tokens * above + positions * self.head_parameters)

    @property
    def full_depth_flops_per_token(self) -> float:
        """28.3e9 for Qwen2.5-7B."""
        return 4.0 * (self.layers * self.layer_parameters + self.head_parameters)


def total_flops(volume: Volume, candidates: Iterable[Candidate]) -> float:
    return sum(volume.plain_flops(candidate) for candidate in candidates)


def peak_flops(inventory: DeviceInventory, layout: Layout) -> float | None:
    """Operations per second that nothing goes beyond: a GPU's by its data sheet, None where that is not known; of a
    CPU all cores' in the product by the largest weight, measured now.
    """
    if inventory.gpus:
        return next((peak for name, peak in PEAKS.items() if name in inventory.gpus[0]), None)
    largest = max(layout.linears, key=lambda linear: linear.in_features * linear.out_features)
    return inventory.cores * _core_flops(largest.in_features, largest.out_features)


def _core_flops(inputs: int, outputs: int) -> float:
    """Of one core, in the faster of two fp32 products."""
    x, weight = torch.randn(ROWS, inputs), torch.randn(outputs, inputs)
    products = [usual_product, *([onednn_product] if torch.backends.mkldnn.is_available() else [])]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        shortest = min(_seconds(product, x, weight) for product in products for _ in range(PRODUCTS))
    finally:
        torch.set_num_threads(threads)
    return 2 * ROWS * inputs * outputs / shortest


def _seconds(product: Product, x: torch.Tensor, weight: torch.Tensor) -> float:
    started = time.perf_counter()
    product(x, weight, None)
    return time.perf_counter() - started
