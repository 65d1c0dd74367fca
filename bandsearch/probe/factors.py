"""The B factors of an attached adapter, and what is left of the model with only some layers' factors in it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from bandsearch.adapters.lora import PREFIX
from bandsearch.values.layout import Layout


def b_factors(model: nn.Module) -> dict[str, nn.Parameter]:
    """Path of the adapted module in the bare model ("model.layers.0.mlp.up_proj") -> its B, (outputs, rank)."""
    return {
        name.partition(".lora_B.")[0].removeprefix(PREFIX): parameter
        for name, parameter in model.named_parameters()
        if ".lora_B." in name
    }


@contextmanager
def only_layers(model: nn.Module, layout: Layout, layers: Collection[int]) -> Iterator[None]:
    """Inside, the adapters outside `layers` do nothing: their B factors are zero. Restored bit for bit afterwards."""
    kept = tuple(f"{layout.layers_path}.{layer}." for layer in layers)
    silenced = [factor for path, factor in b_factors(model).items() if not path.startswith(kept)]
    values = [factor.detach().clone() for factor in silenced]
    try:
        with torch.no_grad():
            for factor in silenced:
                factor.zero_()
        yield
    finally:
        with torch.no_grad():
            for factor, value in zip(silenced, values, strict=True):
                factor.copy_(value)
