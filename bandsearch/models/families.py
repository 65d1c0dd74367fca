"""The one table of model families: where the decoder layers are and which linear modules they hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from bandsearch.values.errors import ModelError
from bandsearch.values.layout import Layout, Linear, Serving
from bandsearch.values.value import Value

Group = Literal["attention", "mlp"]


class Family(Value):
    """One row: the path to the layers, and the linear modules of a layer by group; a layer may lack some of them.

    `mlp` is empty for mixtures of experts: their experts are not plain linear modules and vLLM serves no LoRA on them.
    """

    layers: str
    attention: tuple[str, ...]
    mlp: tuple[str, ...]
    serving: Serving


_QKVO = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
_GATED = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
_PLAIN = ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
# Without what says how fast each head forgets and learns: with as many outputs as heads, a low rank is none.
_DELTA = ("linear_attn.in_proj_qkv", "linear_attn.in_proj_z", "linear_attn.out_proj")
_OLMO_DELTA = tuple(f"linear_attn.{letter}_proj" for letter in "qkvgo")
# Of a model that takes images and the like too.
_TEXT_PART = "model.language_model.layers"


def _llama_like(
    serving: Serving, *, layers: str = "model.layers", attention: tuple[str, ...] = _QKVO, mlp: tuple[str, ...] = _GATED
) -> Family:
    return Family(layers=layers, attention=attention, mlp=mlp, serving=serving)


_EXPERTS = _llama_like(Serving.NATIVE, mlp=())

# Keyed by the configuration's `model_type`. To add a family, add a row and a tiny configuration in tests/conftest.py.
FAMILIES: Mapping[str, Family] = {
    "llama": _llama_like(Serving.NATIVE),
    "mistral": _llama_like(Serving.NATIVE),
    "qwen2": _llama_like(Serving.NATIVE),
    "qwen3": _llama_like(Serving.NATIVE),
    "qwen3_5_text": _llama_like(Serving.UNKNOWN, attention=_QKVO + _DELTA),
    "qwen3_5": _llama_like(Serving.NATIVE, layers=_TEXT_PART, attention=_QKVO + _DELTA),
    "qwen2_5_vl": _llama_like(Serving.NATIVE, layers=_TEXT_PART),
    "qwen3_vl": _llama_like(Serving.NATIVE, layers=_TEXT_PART),
    "mistral3": _llama_like(Serving.NATIVE, layers=_TEXT_PART),
    "ministral3": _llama_like(Serving.UNKNOWN),
    "gemma": _llama_like(Serving.NATIVE),
    "gemma2": _llama_like(Serving.NATIVE),
    "gemma3_text": _llama_like(Serving.NATIVE),
    "gemma3": _llama_like(Serving.NATIVE, layers=_TEXT_PART),
    "gemma4_text": _llama_like(Serving.UNKNOWN),
    "gemma4": _llama_like(Serving.NATIVE, layers=_TEXT_PART),
    "olmo": _llama_like(Serving.TRANSFORMERS),
    "olmo2": _llama_like(Serving.TRANSFORMERS),
    "olmo3": _llama_like(Serving.TRANSFORMERS),
    "olmo_hybrid": _llama_like(Serving.UNKNOWN, attention=_QKVO + _OLMO_DELTA),
    "stablelm": _llama_like(Serving.NONE),
    "phi": _llama_like(
        Serving.TRANSFORMERS,
        attention=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.dense"),
        mlp=("mlp.fc1", "mlp.fc2"),
    ),
    "phi3": _llama_like(
        Serving.NATIVE,
        attention=("self_attn.qkv_proj", "self_attn.o_proj"),
        mlp=("mlp.gate_up_proj", "mlp.down_proj"),
    ),
    "mixtral": _EXPERTS,
    "qwen2_moe": _EXPERTS,
    "qwen3_moe": _EXPERTS,
    "qwen3_next": _llama_like(
        Serving.NATIVE,
        attention=(*_QKVO, "linear_attn.in_proj_qkvz", "linear_attn.out_proj"),
        mlp=(),
    ),
    "qwen3_5_moe_text": _llama_like(Serving.UNKNOWN, attention=_QKVO + _DELTA, mlp=()),
    "qwen3_5_moe": _llama_like(Serving.NATIVE, layers=_TEXT_PART, attention=_QKVO + _DELTA, mlp=()),
    "lfm2": _llama_like(
        Serving.UNKNOWN,
        attention=(
            *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"),
            *("conv.in_proj", "conv.out_proj"),
        ),
        mlp=("feed_forward.w1", "feed_forward.w3", "feed_forward.w2"),
    ),
    "opt": Family(
        layers="model.decoder.layers",
        attention=("self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj", "self_attn.out_proj"),
        mlp=("fc1", "fc2"),
        serving=Serving.NATIVE,
    ),
    "gpt_neox": Family(
        layers="gpt_neox.layers",
        attention=("attention.query_key_value", "attention.dense"),
        mlp=_PLAIN,
        serving=Serving.TRANSFORMERS,
    ),
    "gpt2": Family(
        layers="transformer.h",
        attention=("attn.c_attn", "attn.c_proj"),
        mlp=("mlp.c_fc", "mlp.c_proj"),
        serving=Serving.NONE,
    ),
    "falcon": Family(
        layers="transformer.h",
        attention=("self_attention.query_key_value", "self_attention.dense"),
        mlp=_PLAIN,
        serving=Serving.NONE,
    ),
    "bloom": Family(
        layers="transformer.h",
        attention=("self_attention.query_key_value", "self_attention.dense"),
        mlp=_PLAIN,
        serving=Serving.NONE,
    ),
    "gptj": Family(
        layers="transformer.h",
        attention=("attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.out_proj"),
        mlp=("mlp.fc_in", "mlp.fc_out"),
        serving=Serving.NONE,
    ),
}


def layout_of(model: PreTrainedModel) -> Layout:
    """The layout of a decoder, from the table or, for a model type that is not in it, from its structure.

    Works on models on the meta device too. Raises ModelError, naming what was found, where no layout fits.
    """
    family = FAMILIES.get(model.config.model_type)
    if family is None:
        return _detect(model)
    layers = _layers_at(model, family.layers)
    found = dict.fromkeys(name for layer in layers for name, _ in _linear_modules(layer))
    rows: tuple[tuple[Group, tuple[str, ...]], ...] = (("attention", family.attention), ("mlp", family.mlp))
    groups = {name: group for group, names in rows for name in names}
    missing = [name for name in groups if name not in found]
    if missing:
        raise ModelError(
            f"This {model.config.model_type} model has no {', '.join(missing)} in its decoder layers; "
            f"found: {', '.join(found) or 'no linear modules'}.",
            "Load an unquantised checkpoint of the family, with the layers in their standard form.",
        )
    return _layout(model, model.config.model_type, family.layers, layers, groups, family.serving)


def _layout(
    model: PreTrainedModel, family: str, path: str, layers: nn.ModuleList, groups: Mapping[str, Group], serving: Serving
) -> Layout:
    modules = [[each for each in _linear_modules(layer) if each[0] in groups] for layer in layers]
    having: dict[tuple[str, tuple[int, int]], list[int]] = {}
    for index, layer in enumerate(modules):
        for name, module in layer:
            having.setdefault((name, features(module)), []).append(index)
    return Layout(
        family=family,
        layers_path=path,
        layer_count=len(layers),
        hidden_size=model.config.get_text_config().hidden_size,
        linears=tuple(
            Linear(
                name=name,
                group=groups[name],
                in_features=size[0],
                out_features=size[1],
                layers=tuple(indices) if len(indices) < len(layers) else (),
            )
            for (name, size), indices in having.items()
        ),
        transposed=all(isinstance(module, Conv1D) for layer in modules for _, module in layer),
        serving=serving,
    )


def features(module: nn.Module) -> tuple[int, int]:
    """(inputs, outputs) of an nn.Linear or a Conv1D, whose weight is stored as (inputs, outputs)."""
    if isinstance(module, Conv1D):
        return module.weight.shape[0], module.weight.shape[1]
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    raise TypeError(f"{type(module).__name__} is not a linear module")


def _linear_modules(layer: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in layer.named_modules():
        if isinstance(module, nn.Linear | Conv1D):
            yield name, module


def _layers_at(model: PreTrainedModel, path: str) -> nn.ModuleList:
    try:
        layers = model.get_submodule(path)
    except AttributeError as error:
        raise ModelError(
            f"This {model.config.model_type} model has no decoder layers at {path}.",
            "Load it as a causal language model in its standard transformers form.",
        ) from error
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        raise ModelError(f"{path} of this {model.config.model_type} model is not a list of layers.")
    return layers


_ATTENTION_WORDS = ("attn", "attention")
_MLP_WORDS = ("mlp", "ffn", "feed_forward", "feedforward", "fc1", "fc2", "fc_in", "fc_out")
# A router chooses experts; low-rank changes to it are not what is meant by adapting the MLP.
_EXPERT_WORDS = ("expert", "router", "moe")


def _detect(model: PreTrainedModel) -> Layout:
    """Find the longest list of layers and sort their linear modules into attention and mlp by name."""
    lists = [
        (path, module) for path, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module)
    ]
    best: tuple[str, nn.ModuleList] | None = None
    groups: dict[str, Group] = {}
    for path, layers in lists:
        names = [name for layer in layers for name, _ in _linear_modules(layer)]
        named = {name: group for name in names if (group := _group_of(name)) is not None}
        if "attention" in named.values() and (best is None or len(layers) > len(best[1])):
            best, groups = (path, layers), named
    if best is None:
        found = "; ".join(
            f"{len(layers)} x {'/'.join(sorted({type(layer).__name__ for layer in layers}))} at {path} with "
            f"{', '.join(name for name, _ in _linear_modules(layers[0])) or 'no linear modules'}"
            for path, layers in lists
        )
        raise ModelError(
            f"The decoder layers of model type {model.config.model_type!r} were not recognised; "
            f"found {found or 'no list of layers'}.",
            "Add a row for it to FAMILIES in bandsearch/models/families.py.",
        )
    return _layout(model, model.config.model_type, best[0], best[1], groups, Serving.UNKNOWN)


def _group_of(name: str) -> Group | None:
    lowered = name.lower()
    if any(word in lowered for word in _EXPERT_WORDS):
        return None
    if any(word in lowered for word in _ATTENTION_WORDS):
        return "attention"
    return "mlp" if any(word in lowered for word in _MLP_WORDS) else None
