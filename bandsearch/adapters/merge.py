"""Any PEFT adapter, folded into the weights of its base."""

from __future__ import annotations

from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel


def merge_adapter(model: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    """Add the adapter's update to the weights of `model`, in place, and return it. Frozen, in evaluation mode."""
    merged: PreTrainedModel = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    merged.requires_grad_(False)
    return merged.eval()
