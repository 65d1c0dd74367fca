"""The matrix product of the training loop on a CPU: PyTorch's own, or oneDNN's where that is clearly faster.

PyTorch calls MKL for fp32 products, which leaves more than half of some processors' speed unused. Both compute in
fp32; they differ by rounding.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from bandsearch.values.layout import Layout

# (rows, inputs), W of (outputs, inputs) in any strides, bias or None -> (rows, outputs)
Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]

# What oneDNN has to be faster by. Far from one, so that noise does not choose another kernel on the same machine.
CLEARLY = 1.25
ROWS, REPEATS = 512, 9


def usual_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return nn.functional.linear(x, weight, bias)


def onednn_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


def onednn_is_faster(model: nn.Module, layout: Layout) -> bool:
    """Whether oneDNN multiplies by the largest weight of the first layer clearly faster, forward and backward together.

    False for anything but fp32 on a CPU: other types use oneDNN anyway.
    """
    paths = [f"{layout.layers_path}.0.{linear.name}" for linear in layout.linears_of(0)]
    linears = [module for path in paths if type(module := model.get_submodule(path)) is nn.Linear]
    if not linears or not torch.backends.mkldnn.is_available():
        return False
    weight = max((module.weight for module in linears), key=torch.Tensor.numel)
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return False
    x, gradient = torch.randn(ROWS, weight.shape[1]), torch.randn(ROWS, weight.shape[0])

    def seconds(product: Product) -> float:
        """The shortest of several runs: what else the machine does only adds."""
        times = []
        for _ in range(REPEATS):
            started = time.perf_counter()
            product(x, weight, None)
            product(gradient, weight.T, None)
            times.append(time.perf_counter() - started)
        return min(times[1:])

    with torch.no_grad():
        return seconds(usual_product) > CLEARLY * seconds(onednn_product)
