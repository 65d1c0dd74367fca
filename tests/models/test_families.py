"""The table of families against real models, and models that are not in it."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from bandsearch.models import families
from bandsearch.models.families import layout_of
from bandsearch.values.errors import AdapterError, ModelError

ATTENTION = {"phi3": 2, "gpt2": 2, "gpt_neox": 2, "falcon": 2, "bloom": 2}
MLP = {"phi3": 2, "gpt2": 2, "gpt_neox": 2, "opt": 2, "falcon": 2, "phi": 2, "bloom": 2, "gptj": 2}
MLP |= {"mixtral": 0, "qwen2_moe": 0, "qwen3_moe": 0}


def on_meta(config):
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.fixture
def meta_model(tiny_model, family: str):
    return on_meta(AutoConfig.from_pretrained(tiny_model(family)))


def test_every_row_of_the_table_is_tried(all_families: tuple[str, ...]):
    assert sorted(all_families) == sorted(families.FAMILIES)


def test_layout_describes_the_modules_of_every_layer(meta_model, family: str):
    layout = layout_of(meta_model)
    assert (layout.layer_count, layout.hidden_size) == (4, 32)
    assert sum(linear.group == "attention" for linear in layout.linears) == ATTENTION.get(family, 4)
    assert sum(linear.group == "mlp" for linear in layout.linears) == MLP.get(family, 3)
    for layer in range(layout.layer_count):
        for linear in layout.linears:
            module = meta_model.get_submodule(f"{layout.layers_path}.{layer}.{linear.name}")
            shape = (linear.in_features, linear.out_features)
            assert tuple(module.weight.shape) == (shape if layout.transposed else shape[::-1])
    assert layout.transposed == (family == "gpt2")


def test_structure_alone_finds_the_same(meta_model, monkeypatch):
    known = layout_of(meta_model)
    monkeypatch.setattr(families, "FAMILIES", {})
    found = layout_of(meta_model)
    assert (found.layers_path, found.layer_count, found.linears) == (
        known.layers_path,
        known.layer_count,
        known.linears,
    )
    assert found.serving is families.Serving.UNKNOWN


def test_a_model_type_that_is_not_in_the_table():
    config = AutoConfig.for_model(
        "starcoder2", hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=64
    )
    assert config.model_type not in families.FAMILIES
    layout = layout_of(on_meta(config))
    assert layout.layers_path == "model.layers"
    assert [linear.leaf for linear in layout.targets(("mlp",))] == ["c_fc", "c_proj"]


def test_the_text_part_of_a_model_that_also_sees():
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = AutoConfig.for_model(
        "gemma3",
        text_config={**small, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 64},
        vision_config={**small, "num_hidden_layers": 6, "image_size": 32, "patch_size": 16},
    )
    model = on_meta(config)
    layout = layout_of(model)
    assert (layout.layer_count, layout.hidden_size) == (2, 32)
    assert layout.layers_path == "model.language_model.layers"


def test_a_network_without_attention_is_refused_with_what_was_found():
    config = AutoConfig.for_model("mamba", hidden_size=32, num_hidden_layers=2, vocab_size=64, state_size=4)
    with pytest.raises(ModelError, match=r"2 x MambaBlock at backbone\.layers with mixer\."):
        layout_of(on_meta(config))


def test_layers_that_differ_are_refused(tiny_model):
    model = AutoModelForCausalLM.from_pretrained(tiny_model("llama"))
    model.model.layers[2].mlp.up_proj = torch.nn.Linear(32, 40)
    with pytest.raises(ModelError, match=r"Layers 0 and 2 .* differ in mlp\.up_proj"):
        layout_of(model)


def test_replaced_modules_are_refused_with_what_was_found(tiny_model):
    model = AutoModelForCausalLM.from_pretrained(tiny_model("llama"))
    model.model.layers[0].mlp = torch.nn.Identity()
    with pytest.raises(ModelError, match=r"no mlp\.gate_proj.*found: self_attn\.q_proj"):
        layout_of(model)


def test_targets_expand_in_the_layout_s_order(tiny_model):
    layout = layout_of(on_meta(AutoConfig.from_pretrained(tiny_model("gpt2"))))
    assert [linear.name for linear in layout.targets(("mlp", "c_attn"))] == ["attn.c_attn", "mlp.c_fc", "mlp.c_proj"]
    assert [linear.name for linear in layout.targets(("c_proj",))] == ["attn.c_proj", "mlp.c_proj"]
    assert [linear.name for linear in layout.targets(("mlp.c_proj",))] == ["mlp.c_proj"]
    assert layout.targets(("all",)) == layout.linears
    with pytest.raises(AdapterError, match=r"'q_proj'.*Choose from attention, mlp, all, c_attn, c_proj, c_fc"):
        layout.targets(("q_proj",))
