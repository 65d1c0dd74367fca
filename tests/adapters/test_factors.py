"""An adapter of another tool, as the factors that an engine computes with."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from bandsearch.adapters.factors import plain_factors
from bandsearch.adapters.lora import attach, load_tensors
from bandsearch.adapters.merge import mount_adapter
from bandsearch.adapters.verify import FOR_VLLM_ALONE, require_sound
from bandsearch.models.aliases import resolve
from bandsearch.models.families import layout_of
from bandsearch.models.loading import load_model
from bandsearch.values.errors import AdapterError
from bandsearch.values.spec import ModelSpec

IDS = torch.tensor([[5, 60, 7, 300, 9, 11, 12]])


@pytest.fixture
def trained(tiny_model: Callable[[str], Path], tmp_path: Path) -> Callable[..., tuple[Any, Path, torch.Tensor]]:
    """`trained(**config)`: the base, an adapter of PEFT's own with random factors, and the logits of both together."""

    def train(**config: Any) -> tuple[Any, Path, torch.Tensor]:
        source = resolve(ModelSpec(name=str(tiny_model("llama"))))
        names = [f"model.layers.{layer}.{name}" for layer, name in ((0, "self_attn.q_proj"), (2, "mlp.up_proj"))]
        settings = {"target_modules": names, "r": 3, "lora_alpha": 5, "init_lora_weights": False} | config
        torch.manual_seed(1)
        model = get_peft_model(load_model(source, "fp32"), LoraConfig(task_type="CAUSAL_LM", **settings))
        if config.get("modules_to_save"):
            with torch.no_grad():
                model.get_parameter("base_model.model.lm_head.modules_to_save.default.weight").mul_(1.5)
        model.save_pretrained(tmp_path / "adapter")
        return load_model(source, "fp32"), tmp_path / "adapter", model.eval()(IDS).logits.detach()

    return train


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 6}, "alpha_pattern": {"layers.2.mlp.up_proj": 11}},
        {"rank_pattern": {"up_proj": 1}, "use_rslora": True},
    ],
)
def test_its_factors_compute_its_update(trained: Callable[..., Any], config: dict[str, Any]) -> None:
    base, adapter, logits = trained(**config)
    layout = layout_of(base)
    require_sound(adapter, layout, passing=FOR_VLLM_ALONE)
    found = plain_factors(adapter, layout)
    assert found is not None
    candidate, factors = found
    assert candidate.layers == (0, 2)
    assert candidate.scale == 1
    beside = attach(base, candidate, layout, 0)
    load_tensors(beside, factors)
    assert torch.allclose(beside.eval()(IDS).logits, logits, atol=1e-4)


@pytest.mark.parametrize("config", [{"use_dora": True}, {"modules_to_save": ["lm_head"]}])
def test_what_is_more_than_lora_is_left_to_peft(trained: Callable[..., Any], config: dict[str, Any]) -> None:
    base, adapter, logits = trained(**config)
    layout = layout_of(base)
    require_sound(adapter, layout, passing=FOR_VLLM_ALONE)
    assert plain_factors(adapter, layout) is None
    with pytest.raises(AdapterError):
        require_sound(adapter, layout)
    assert torch.allclose(mount_adapter(base, adapter)(IDS).logits, logits, atol=1e-4)


def test_an_adapter_that_peft_would_load_in_part_is_refused(trained: Callable[..., Any]) -> None:
    base, adapter, _ = trained(use_dora=True)
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({name.replace("layers.2", "layers.3"): tensor for name, tensor in tensors.items()}, file)
    with pytest.raises(AdapterError, match="a part of"):
        mount_adapter(base, adapter)
    config = json.loads((adapter / "adapter_config.json").read_text()) | {"peft_type": "NOTHING"}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(AdapterError, match="PEFT cannot load"):
        mount_adapter(load_model(resolve(ModelSpec(name=base.name_or_path)), "fp32"), adapter)
