"""Writing an adapter that PEFT and every vLLM read alike."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from bandsearch.adapters.limits import CHAT_TEMPLATE_FILE
from bandsearch.adapters.lora import module_paths, tensor_names
from bandsearch.values.candidate import Candidate
from bandsearch.values.errors import AdapterError
from bandsearch.values.layout import Layout
from bandsearch.values.source import Source

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
CARD_FILE = "README.md"


def export_adapter(
    tensors: Mapping[str, Tensor],
    candidate: Candidate,
    layout: Layout,
    source: Source,
    destination: Path,
    card: str,
    chat_template: str = "",
) -> None:
    """Write the trained factors as a PEFT directory: configuration, weights and model card, all or nothing.

    With them the `chat_template` that was trained with, in jinja, where it is not the base's own.

    The scale is folded into B and all factors get one rank R with alpha = R, so that the scale every reader computes
    is 1: older vLLM releases ignore per-module ranks and alphas. `tensors` carry PEFT's saved names. An adapter
    already at `destination` is replaced. Raises AdapterError for tensors that are not the candidate's, NaN or Inf, and
    a destination that is something else; OSError where the disk is full.
    """
    folded = fold(tensors, candidate, layout)
    rank = next(tensor.shape[0] for name, tensor in folded.items() if ".lora_A." in name)
    config = _config(candidate, layout, source, rank)
    destination = destination.absolute()
    if destination.exists() and not (destination / CONFIG_FILE).is_file() and not _is_empty(destination):
        raise AdapterError(f"{destination} exists and is not an adapter.", "Choose another directory.")
    with _writing(destination):
        destination.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=destination.parent, prefix=f".{destination.name}-") as scratch:
            fresh = Path(scratch) / "fresh"
            fresh.mkdir()
            # What safetensors writes itself tells of a full disk without its errno.
            (fresh / WEIGHTS_FILE).write_bytes(save(folded, metadata={"format": "pt"}))
            (fresh / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
            (fresh / CARD_FILE).write_text(card, encoding="utf-8")
            if chat_template:
                (fresh / CHAT_TEMPLATE_FILE).write_text(chat_template, encoding="utf-8")
            if destination.exists():
                os.rename(destination, Path(scratch) / "old")
            os.rename(fresh, destination)


def write_card(destination: Path, card: str) -> None:
    """Replace the model card of an exported adapter, for numbers that are known only after it was written."""
    scratch = destination / f".{CARD_FILE}.tmp"
    with _writing(destination):
        try:
            scratch.write_text(card, encoding="utf-8")
            os.replace(scratch, destination / CARD_FILE)
        finally:
            scratch.unlink(missing_ok=True)


def fold(tensors: Mapping[str, Tensor], candidate: Candidate, layout: Layout) -> dict[str, Tensor]:
    """The same update with scale 1 and one rank: B times the scale, A and B zero-padded to the largest rank. fp32."""
    paths = module_paths(candidate, layout)
    expected = {name for path in paths for name in tensor_names(path)}
    if tensors.keys() != expected:
        odd = sorted(tensors.keys() ^ expected)
        raise AdapterError(f"{len(odd)} tensors do not fit the candidate {candidate}, for example {odd[0]}.")
    rank = max(tensors[tensor_names(path)[0]].shape[0] for path in paths)
    folded = {}
    for path in paths:
        name_a, name_b = tensor_names(path)
        a, b = (tensors[name].detach().to("cpu", torch.float32) for name in (name_a, name_b))
        if a.shape[0] != b.shape[1]:
            raise AdapterError(f"The factors of {path} have ranks {a.shape[0]} and {b.shape[1]}.")
        if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
            raise AdapterError(
                f"The adapter holds NaN or Inf in {path}: its training diverged.", "Use a lower learning rate."
            )
        missing = rank - a.shape[0]
        folded[name_a] = torch.nn.functional.pad(a, (0, 0, 0, missing)).contiguous()
        folded[name_b] = torch.nn.functional.pad(b * candidate.scale, (0, missing)).contiguous()
    return folded


def _config(candidate: Candidate, layout: Layout, source: Source, rank: int) -> dict[str, object]:
    # Only keys that every PEFT and vLLM release knows: old ones refuse a configuration with newer keys.
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": source.location,
        "revision": source.revision,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "fan_in_fan_out": layout.transposed,
        "target_modules": list(module_paths(candidate, layout)),
        "layers_to_transform": None,
        "layers_pattern": None,
        "rank_pattern": {},
        "alpha_pattern": {},
    }


def _is_empty(destination: Path) -> bool:
    return destination.is_dir() and not any(destination.iterdir())


@contextmanager
def _writing(destination: Path) -> Iterator[None]:
    """Turn what keeps an adapter from being written into a sentence. A full disk stays an OSError: only who writes
    there knows how to go on once it has room."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise AdapterError(f"The adapter cannot be written to {destination}: {error.strerror or error}.") from error
