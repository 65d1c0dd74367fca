"""Floating-point operations of a trial: what the plain arms pay, and what an accelerator's peak is compared with."""

from __future__ import annotations

from collections.abc import Iterable

from bandsearch.values.candidate import Candidate
from bandsearch.values.value import Value

# Dense bf16 operations per second, from the vendor's data sheets.
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}


class Volume(Value):
    """Weights that multiply, and tokens that go through them. Attention scores and LoRA factors are left out: small."""

    layer_parameters: int
    layers: int
    head_parameters: int
    trained_tokens: int
    read_tokens: int

    def plain_flops(self, candidate: Candidate) -> float:
        """Of one trial that runs the whole network: forward through all of it, backward down to the band's start.

        A weight costs 2 per token forward and 2 backward for the gradient of its input; frozen weights need no more.
        """
        head, layer = self.head_parameters, self.layer_parameters
        forward = 2 * (self.layers * layer + head)
        backward = 2 * ((self.layers - candidate.layers[0]) * layer + head)
        return float(self.trained_tokens * (forward + backward) + self.read_tokens * forward)

    @property
    def full_depth_flops_per_token(self) -> float:
        """28.3e9 for Qwen2.5-7B."""
        return 4.0 * (self.layers * self.layer_parameters + self.head_parameters)


def total_flops(volume: Volume, candidates: Iterable[Candidate]) -> float:
    return sum(volume.plain_flops(candidate) for candidate in candidates)


def peak_flops(device_name: str) -> float | None:
    return next((peak for name, peak in PEAKS.items() if name in device_name), None)
