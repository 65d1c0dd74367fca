"""Any PEFT adapter mounted on its base, or one of ours folded into the weights of it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from bandsearch.adapters.export import CONFIG_FILE, WEIGHTS_FILE
from bandsearch.adapters.lora import PREFIX, tensor_names
from bandsearch.values.errors import AdapterError


def mount_adapter(model: PreTrainedModel, adapter: Path) -> PeftModel:
    """`model` with the adapter beside its weights, so that it can be switched off. In evaluation mode.

    Raises AdapterError where PEFT cannot load it, or would load a part of it, and for a method that adds to the text
    in place of the weights.
    """
    remedy = "Give the model that it was trained on."
    try:
        mounted = PeftModel.from_pretrained(model, str(adapter)).eval()
    except (RuntimeError, ValueError, LookupError, TypeError) as error:
        line = next(iter(str(error).splitlines()), type(error).__name__)
        raise AdapterError(f"PEFT cannot load {adapter}: {line.rstrip('. :')}.", remedy) from error
    if not hasattr(mounted.base_model, "merge_and_unload"):
        method = mounted.active_peft_config.peft_type.value
        raise AdapterError(f"An adapter of the method {method} cannot be scored.", "Give an adapter of weights.")
    stored = load_file(adapter / WEIGHTS_FILE).keys()
    # Some adapters bring embeddings of the base along.
    known = get_peft_model_state_dict(mounted, save_embedding_layers=False).keys()
    apart = sorted(name for name in known ^ stored if name in known or "embed" not in name)
    if apart:
        raise AdapterError(f"PEFT loads a part of {adapter} alone: {apart[0]} has no counterpart.", remedy)
    return mounted


def add_adapter(model: PreTrainedModel, adapter: Path) -> None:
    """Add the update of an adapter that bandsearch exported to the weights, in place: summed in fp32, and rounded once
    to what each weight is kept in."""
    config = json.loads((adapter / CONFIG_FILE).read_text(encoding="utf-8"))
    tensors = load_file(adapter / WEIGHTS_FILE)
    suffix = tensor_names("")[0].removeprefix(PREFIX)
    paths = [name.removeprefix(PREFIX).removesuffix(suffix) for name in tensors if name.endswith(suffix)]
    for path in paths:
        a, b = (tensors[name].float() for name in tensor_names(path))
        update = config["lora_alpha"] / config["r"] * (b @ a)
        module = model.get_submodule(path)
        weight = module.get_parameter("weight")
        if isinstance(module, Conv1D):
            update = update.T
        with torch.no_grad():
            weight.copy_(weight.float() + update.to(weight.device))
