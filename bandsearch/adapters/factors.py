"""Anybody's LoRA adapter as the factors that an engine computes with."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file
from torch import Tensor

from bandsearch.adapters.export import CONFIG_FILE, WEIGHTS_FILE
from bandsearch.adapters.limits import INIT_LABELS
from bandsearch.adapters.lora import PREFIX, modules_of, tensor_names
from bandsearch.values.band import Band
from bandsearch.values.candidate import Candidate
from bandsearch.values.layout import Layout

# What a plain LoRA adapter may say; anything else that is set makes it another function.
_PLAIN = frozenset(
    {
        *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
        *("inference_mode", "r", "lora_alpha", "lora_dropout", "bias", "use_rslora", "init_lora_weights"),
        *("fan_in_fan_out", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
        *("rank_pattern", "alpha_pattern", "megatron_core", "qalora_group_size"),
    }
)


def plain_factors(adapter: Path, layout: Layout) -> tuple[Candidate, dict[str, Tensor]] | None:
    """A candidate of scale 1 and its factors by saved name, fp32, that compute the update of a sound adapter; None for
    one that is more than LoRA on linear modules of the layers.

    Ranks and scales that differ by module are padded with zeros and folded into B; modules that it leaves out of its
    layers get zeros.
    """
    config = json.loads((adapter / CONFIG_FILE).read_text(encoding="utf-8"))
    tensors = load_file(adapter / WEIGHTS_FILE)
    candidate = None if _is_more(config) else _places(tensors, layout)
    if candidate is None:
        return None
    factors = {}
    for path, linear in modules_of(candidate, layout).items():
        name_a, name_b = tensor_names(path)
        a = tensors.get(name_a, torch.zeros(0, linear.in_features)).float()
        b = tensors.get(name_b, torch.zeros(linear.out_features, 0)).float()
        missing = candidate.rank - len(a)
        factors[name_a] = torch.nn.functional.pad(a, (0, 0, 0, missing))
        factors[name_b] = torch.nn.functional.pad(b * _scale(config, path, len(a)), (0, missing))
    return candidate, factors


def _is_more(config: Mapping[str, Any]) -> bool:
    label = config.get("init_lora_weights", True)
    changes_base = isinstance(label, str) and label.lower() not in INIT_LABELS
    named = isinstance(config.get("target_modules"), list)
    return changes_base or not named or any(value for key, value in config.items() if key not in _PLAIN)


def _places(tensors: Mapping[str, Tensor], layout: Layout) -> Candidate | None:
    """Of all layers and modules that have a factor; None where one of them is in no place of the layout."""
    names = "|".join(re.escape(linear.name) for linear in layout.linears)
    place = re.compile(rf"{re.escape(PREFIX + layout.layers_path)}\.(\d+)\.({names})\.lora_[AB]\.weight")
    found = [place.fullmatch(name) for name in tensors]
    if not all(found):
        return None
    layers = sorted({int(match[1]) for match in found if match})
    starts = [layer for layer in layers if layer - 1 not in layers]
    stops = [layer + 1 for layer in layers if layer + 1 not in layers]
    rank = max(len(tensor) for name, tensor in tensors.items() if ".lora_A." in name)
    return Candidate(
        bands=tuple(Band(start=start, stop=stop) for start, stop in zip(starts, stops, strict=True)),
        rank=rank,
        alpha=rank,
        targets=tuple(sorted({match[2] for match in found if match})),
        # It is not trained.
        learning_rate=1.0,
    )


def _scale(config: Mapping[str, Any], path: str, rank: int) -> float:
    patterns = config.get("alpha_pattern") or {}
    alpha = float(patterns.get(get_pattern_key(patterns.keys(), path), config["lora_alpha"]))
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank) if rank else 0.0
