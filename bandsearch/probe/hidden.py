"""Hidden states of every layer on the same sequences, and the three views computed from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from bandsearch.adapters.lora import tensor_names
from bandsearch.data.dataset import Encoded
from bandsearch.models.loading import dense_weight
from bandsearch.probe.views import (
    curvature,
    effective_rank,
    linear_cka,
    matrix_entropy,
    mean_cosine,
    update_norm,
)
from bandsearch.values.layout import Layout
from bandsearch.values.profile import LayerViews

# Tokens looked at, of one sequence (its last ones, where the answer is) and of all together. More change the measures
# little, and the cost of an eigenvalue problem grows with the cube.
MOST_TOKENS = 512

States = list[list[Tensor]]


def hidden_states(model: nn.Module, layout: Layout, examples: Sequence[Encoded]) -> States:
    """`states[layer][example]`, each (tokens, hidden size) on the CPU, since those of all layers are gigabytes: what
    every decoder layer puts out, before any final norm.

    Each example is a whole sequence, answer included, run alone, so no padding is among its tokens; of longer ones the
    last MOST_TOKENS are kept.
    """
    layers = decoder_layers(model, layout)
    states: States = [[] for _ in layers]
    with _recording(layers, states), torch.no_grad():
        for example in examples:
            ids = torch.tensor(example.input_ids[None], dtype=torch.long, device=next(model.parameters()).device)
            # As a number it has Gemma 4 leave all other tokens out of the layers that share keys and values.
            model(input_ids=ids, use_cache=False, logits_to_keep=ids.new_zeros(1))
    return states


def layer_views(base: States, tuned: States, changes: Sequence[float], device: torch.device) -> tuple[LayerViews, ...]:
    """The three views of each layer, computed on `device`. Entropy and curvature are means over sequences, effective
    rank, CKA and cosine are taken on the tokens of all sequences together, at most MOST_TOKENS of them at even
    distances.
    """
    # Eigenvalues are found by a library that takes its memory past what torch keeps for itself.
    torch.cuda.empty_cache()
    return tuple(
        _views_of(layer, [each.to(device) for each in before], [each.to(device) for each in after], change)
        for layer, (before, after, change) in enumerate(zip(base, tuned, changes, strict=True))
    )


def _views_of(layer: int, base: list[Tensor], tuned: list[Tensor], change: float) -> LayerViews:
    x, y = _pooled(base), _pooled(tuned)
    return LayerViews(
        layer=layer,
        entropy_base=_mean(map(matrix_entropy, base)),
        entropy_tuned=_mean(map(matrix_entropy, tuned)),
        effective_rank_base=effective_rank(x),
        effective_rank_tuned=effective_rank(y),
        cka=linear_cka(x, y),
        cosine=mean_cosine(x, y),
        curvature_base=_mean(map(curvature, base)),
        curvature_tuned=_mean(map(curvature, tuned)),
        relative_change=change,
    )


def relative_changes(
    model: nn.Module, layout: Layout, tensors: Mapping[str, Tensor], scale: float
) -> tuple[float, ...]:
    """Per layer, the mean over its adapted modules of ||scale B A||_F / ||W||_F, W from the bare `model`; 0 for a layer
    without any."""
    changes = []
    for layer in range(layout.layer_count):
        ratios = []
        for linear in layout.linears_of(layer):
            path = f"{layout.layers_path}.{layer}.{linear.name}"
            a, b = (tensors[name] for name in tensor_names(path))
            weight = dense_weight(model.get_submodule(path))
            ratios.append(update_norm(a, b, scale) / float(torch.linalg.vector_norm(weight, dtype=torch.float32)))
        changes.append(sum(ratios) / max(1, len(ratios)))
    return tuple(changes)


def decoder_layers(model: nn.Module, layout: Layout) -> nn.ModuleList:
    """The list of layers, also where PEFT has wrapped the model."""
    suffix = f".{layout.layers_path}"
    return next(m for name, m in model.named_modules() if name == layout.layers_path or name.endswith(suffix))


@contextmanager
def _recording(layers: nn.ModuleList, states: States) -> Iterator[None]:
    def record(into: list[Tensor]) -> object:
        def hook(_: nn.Module, __: object, output: Tensor | tuple[Tensor, ...]) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            # A view would keep all tokens of the sequence.
            into.append(hidden[0, -MOST_TOKENS:].detach().to("cpu", copy=True))

        return hook

    handles = [layer.register_forward_hook(record(into)) for layer, into in zip(layers, states, strict=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _pooled(states: list[Tensor]) -> Tensor:
    tokens = torch.cat(states)
    if len(tokens) <= MOST_TOKENS:
        return tokens
    return tokens[torch.linspace(0, len(tokens) - 1, MOST_TOKENS).round().long()]


def _mean(values: Iterator[float]) -> float:
    collected = list(values)
    return sum(collected) / len(collected)
