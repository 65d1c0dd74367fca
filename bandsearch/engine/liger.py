"""RMS norms and gated feed-forward parts by Liger's fused GPU kernels (Hsu et al. 2024), where they are installed.

Which kernel computes what a module does is found by trying them on it, so that no list of classes has to be kept: they
differ by an offset of the weight, by where they round and by the activation.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bandsearch.engine.forwards import Forward, Forwards, alike
from bandsearch.values.layout import Layout

Kernel = Callable[[nn.Module, Tensor], Tensor]

# Offset of the weight, and Liger's name for where it rounds.
NORMS = ((0.0, "llama"), (1.0, "gemma"), (0.0, "gemma"))
ROWS = 8


def liger_is_usable(model: PreTrainedModel) -> bool:
    return model.device.type == "cuda" and importlib.util.find_spec("liger_kernel") is not None


class FusedModules:
    """Takes over what Liger has a kernel for, in the decoder and the norm behind it, while it is in use."""

    def __init__(self, model: PreTrainedModel, layout: Layout) -> None:
        self._decoder: nn.Module = model.get_submodule(layout.layers_path.rpartition(".")[0])
        self._dtype: torch.dtype = model.dtype
        self._forwards = Forwards()

    def use(self, wanted: bool) -> None:
        self._forwards.release()
        if wanted:
            self._take()

    def _take(self) -> None:
        # Modules of a class and of equal sizes compute alike.
        known: dict[object, Kernel | None] = {}
        for module in self._decoder.modules():
            kind = (type(module), tuple(tuple(each.shape) for each in module.parameters()))
            if kind not in known:
                known[kind] = next((each for each in _kernels(module) if self._computes(each, module)), None)
            if (kernel := known[kind]) is not None:
                self._forwards.replace(module, partial(_bound, kernel, module))

    def _computes(self, kernel: Kernel, module: nn.Module) -> bool:
        """Whether `kernel` does what `module` does, on random input."""
        first = next(module.parameters())
        width = len(first) if first.ndim == 1 else module.gate_proj.in_features
        x = torch.randn(1, ROWS, width, generator=torch.Generator().manual_seed(0)).to(first.device, self._dtype)
        with torch.no_grad():
            try:
                expected = module(x)
            except TypeError:
                # It takes more than its input, such as the gate behind linear attention.
                return False
            return alike(kernel(module, x), expected, self._dtype)


def _bound(kernel: Kernel, module: nn.Module, _: Forward) -> Forward:
    return partial(kernel, module)


def _kernels(module: nn.Module) -> list[Kernel]:
    """What may compute the same."""
    from liger_kernel.transformers import functional

    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if isinstance(eps, float) and [name for name, _ in module.named_parameters()] == ["weight"]:
        return [partial(_norm, functional.liger_rms_norm, eps, offset, casting) for offset, casting in NORMS]
    if all(isinstance(getattr(module, name, None), nn.Module) for name in ("gate_proj", "up_proj", "down_proj")):
        return [partial(_gated, product) for product in (functional.liger_swiglu, functional.liger_geglu)]
    return []


def _norm(
    kernel: Callable[..., Tensor], eps: float, offset: float, casting: str, module: nn.Module, x: Tensor
) -> Tensor:
    # Not in place: behind a norm that feeds the residual stream, the gradient is needed elsewhere too.
    return kernel(x, module.weight, eps, offset=offset, casting_mode=casting, in_place=False)


def _gated(kernel: Callable[[Tensor, Tensor], Tensor], module: nn.Module, x: Tensor) -> Tensor:
    y: Tensor = module.down_proj(kernel(module.gate_proj(x), module.up_proj(x)))
    return y
