"""Gradient sensitivity of every linear module at the initial LoRA factors."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bandsearch.adapters.lora import PREFIX
from bandsearch.data.dataset import Encoded
from bandsearch.engine.forwards import Forwards
from bandsearch.engine.memory import too_much, within_memory
from bandsearch.engine.stage import recomputed
from bandsearch.probe.factors import b_factors
from bandsearch.probe.forward import token_losses
from bandsearch.values.layout import Layout
from bandsearch.values.profile import ModuleSensitivity


def module_sensitivities(
    model: PreTrainedModel,
    layout: Layout,
    examples: Sequence[Encoded],
    seconds: float | None = None,
    *,
    recomputes: bool = True,
) -> tuple[ModuleSensitivity, ...]:
    """Sensitivity of every adapted module of `model`, which carries fresh full-depth LoRA factors (B = 0).

    With B = 0 the gradient of A vanishes and dL/dB = scale * (dL/dW) A^T is a random sketch of the gradient of the
    whole weight. One backward pass per example gives its g_i = dL_i/dB, where L_i is the example's mean loss:

    - raw: ||mean_i g_i||_F. It carries the scale of the module's inputs, of everything above it in the backward pass,
      of A and of alpha, and so mostly says how deep the module lies.
    - normalised: the coherence sqrt(||E g||^2 / E ||g||^2), from 0 (examples pull in unrelated directions) to 1 (all
      the same way). E ||g||^2 is the trace of the empirical Fisher information, so its square is, up to the number of
      examples, the loss a natural-gradient step inside the module would save; every scale and size cancels. ||E g||^2
      is estimated without bias, (n ||mean||^2 - mean ||g_i||^2) / (n - 1), so it does not depend on the number
      of examples; an estimate below zero counts as 0.

    Stops after `seconds`, but not before two examples. Needs at least two examples. Where one is too much for memory
    its layers run twice, if `recomputes`. Raises OutOfMemoryError where that does not do.
    """
    factors = b_factors(model)
    sums = [torch.zeros_like(factor) for factor in factors.values()]
    squares = torch.zeros(len(factors), dtype=torch.float64)
    started, count = time.monotonic(), 0
    for example in examples:
        if seconds is not None and count >= 2 and time.monotonic() - started > seconds:
            break
        gradients = _gradients(model, layout, example, list(factors.values()), recomputes)
        for total, gradient in zip(sums, gradients, strict=True):
            total += gradient
        squares += _squared_norms(gradients)
        count += 1
    of_mean, mean_of = _squared_norms(sums) / count**2, squares / count
    return tuple(
        ModuleSensitivity(
            layer=int(layer), module=module, raw=math.sqrt(energy), normalised=coherence(energy, total, count)
        )
        for (layer, _, module), energy, total in zip(
            (path.removeprefix(f"{layout.layers_path}.").partition(".") for path in factors),
            of_mean.tolist(),
            mean_of.tolist(),
            strict=True,
        )
    )


def _gradients(
    model: PreTrainedModel, layout: Layout, example: Encoded, factors: Sequence[Tensor], recomputes: bool
) -> tuple[Tensor, ...]:
    """Of the example's mean loss; where memory does not do for all that they need, layers run twice, if they may."""

    def work() -> tuple[Tensor, ...]:
        gradients: tuple[Tensor, ...] = torch.autograd.grad(token_losses(model, [example]).mean(), factors)
        return gradients

    if (found := within_memory(work)) is not None:
        return found
    if not recomputes:
        raise too_much(len(example.input_ids))
    torch.cuda.empty_cache()
    forwards = Forwards()
    for layer in model.get_submodule(PREFIX + layout.layers_path).children():
        forwards.replace(layer, recomputed)
    try:
        found = within_memory(work)
    finally:
        forwards.release()
    if found is None:
        raise too_much(len(example.input_ids))
    return found


def coherence(energy_of_mean: float, mean_energy: float, count: int) -> float:
    """sqrt(||E g||^2 / E ||g||^2) from the energies of `count` independent gradients, unbiased; 0 without gradients.

    `energy_of_mean` is ||mean g_i||^2, `mean_energy` is the mean of ||g_i||^2.
    """
    if mean_energy == 0 or count < 2:
        return 0.0
    unbiased = (count * energy_of_mean - mean_energy) / (count - 1)
    return math.sqrt(min(1.0, max(0.0, unbiased / mean_energy)))


def _squared_norms(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([tensor.float().square().sum() for tensor in tensors]).double().cpu()
