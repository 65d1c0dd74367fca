"""Any PEFT adapter, mounted on its base or folded into the weights of it."""

from __future__ import annotations

from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel


def mount_adapter(model: PreTrainedModel, adapter: Path) -> PeftModel:
    """`model` with the adapter beside its weights, so that it can be switched off. In evaluation mode."""
    return PeftModel.from_pretrained(model, str(adapter)).eval()


def merge_adapter(mounted: PeftModel) -> PreTrainedModel:
    """Add the mounted adapter's update to the weights, in place, and return the plain model. Frozen, in evaluation
    mode."""
    merged: PreTrainedModel = mounted.merge_and_unload()
    merged.requires_grad_(False)
    return merged.eval()
