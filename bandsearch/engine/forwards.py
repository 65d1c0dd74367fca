"""Forwards: modules that compute something else for a while, and get their own forward back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Forward = Callable[..., Any]

# What rounding explains, relative to the largest output.
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2**-6, torch.float16: 2**-9}


class Forwards:
    """Replaces the forward of any number of modules until `release`."""

    def __init__(self) -> None:
        self._replaced: list[tuple[nn.Module, Forward | None]] = []

    def __len__(self) -> int:
        """How many are replaced."""
        return len(self._replaced)

    def replace(self, module: nn.Module, wrapped: Callable[[Forward], Forward]) -> None:
        """`wrapped` makes the new forward from the one there is."""
        # Loading libraries may have put a forward of their own on a module.
        self._replaced.append((module, vars(module).get("forward")))
        module.forward = wrapped(module.forward)

    def release(self) -> None:
        for module, before in reversed(self._replaced):
            del module.forward
            if before is not None:
                module.forward = before
        self._replaced.clear()


def alike(found: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    """Whether two outputs of a module that computes in `dtype` differ by rounding alone."""
    found, expected = found.detach().float(), expected.detach().float()
    return float((found - expected).abs().max()) <= ROUNDING[dtype] * float(expected.abs().max())
