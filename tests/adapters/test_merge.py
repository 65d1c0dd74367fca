"""An adapter merged into the weights of its base computes what the two compute beside each other."""

from collections.abc import Callable
from typing import Any

import torch

from bandsearch.adapters.merge import add_adapter
from bandsearch.models.loading import load_model

# What the adapters of `export` were asked.
IDS = torch.tensor([[5, 60, 7, 300, 9, 11, 12]])


def test_a_merged_model_computes_what_base_and_adapter_do(export: Callable[..., Any], family: str) -> None:
    exported = export(family)
    model = load_model(exported.source, "fp32")
    assert not torch.allclose(exported.trained, exported.base, atol=1e-2)
    add_adapter(model, exported.path)
    assert torch.allclose(model(IDS).logits, exported.trained, atol=1e-4)


def test_an_update_is_rounded_once(export: Callable[..., Any]) -> None:
    exported = export("llama", rank=3)
    exact, model = load_model(exported.source, "fp32"), load_model(exported.source, "bf16")
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    add_adapter(exact.bfloat16().float(), exported.path)
    add_adapter(model, exported.path)
    for name, weight in exact.named_parameters():
        assert torch.equal(model.get_parameter(name), weight.bfloat16())
    changed = [name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])]
    assert changed
    assert all(".layers.1." in name or ".layers.2." in name for name in changed)
