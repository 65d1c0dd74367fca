"""The table of families against real models, and models that are not in it."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from bandsearch.models import families
from bandsearch.models.config import MULTIMODAL, auto_class
from bandsearch.models.families import layout_of
from bandsearch.values.errors import AdapterError, ModelError
from bandsearch.values.layout import Layout

# By name, in whichever layers.
ATTENTION = {"phi3": 2, "gpt2": 2, "gpt_neox": 2, "falcon": 2, "bloom": 2, "lfm2": 6, "olmo_hybrid": 9, "qwen3_next": 6}
ATTENTION |= dict.fromkeys(("qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"), 7)
MLP = {"phi3": 2, "gpt2": 2, "gpt_neox": 2, "opt": 2, "falcon": 2, "phi": 2, "bloom": 2, "gptj": 2}
MLP |= dict.fromkeys(("mixtral", "qwen2_moe", "qwen3_moe", "qwen3_next", "qwen3_5_moe", "qwen3_5_moe_text"), 0)


def on_meta(config):
    with torch.device("meta"):
        return auto_class(config).from_config(config)


def alike(layout):
    return [linear for linear in layout.linears if not linear.name.startswith(("linear_attn.", "conv."))]


@pytest.fixture
def meta_model(tiny_model, family: str):
    return on_meta(AutoConfig.from_pretrained(tiny_model(family)))


def test_every_row_of_the_table_is_tried(all_families: tuple[str, ...]):
    assert sorted(all_families) == sorted(families.FAMILIES)


def test_layout_describes_the_modules_of_every_layer(meta_model, family: str):
    layout = layout_of(meta_model)
    assert (layout.layer_count, layout.hidden_size) == (4, 32)
    names = {group: {each.name for each in layout.linears if each.group == group} for group in ("attention", "mlp")}
    assert len(names["attention"]) == ATTENTION.get(family, 4)
    assert len(names["mlp"]) == MLP.get(family, 3)
    known = names["attention"] | names["mlp"]
    for layer in range(layout.layer_count):
        inside = meta_model.get_submodule(f"{layout.layers_path}.{layer}")
        there = {name: module for name, module in inside.named_modules() if name in known}
        assert {linear.name for linear in layout.linears_of(layer)} == there.keys() != set()
        for linear in layout.linears_of(layer):
            shape = (linear.in_features, linear.out_features)
            assert tuple(there[linear.name].weight.shape) == (shape if layout.transposed else shape[::-1])
    assert layout.transposed == (family == "gpt2")


def test_structure_alone_finds_the_same(meta_model, monkeypatch):
    known = layout_of(meta_model)
    monkeypatch.setattr(families, "FAMILIES", {})
    found = layout_of(meta_model)
    assert (found.layers_path, found.layer_count) == (known.layers_path, known.layer_count)
    # By its name alone nobody can tell what else mixes positions.
    assert alike(found) == alike(known)
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


def test_every_model_that_is_loaded_whole_has_a_row_that_leads_to_its_text_part():
    assert {kind for kind, row in families.FAMILIES.items() if "language_model" in row.layers} == MULTIMODAL


def test_layers_that_differ_are_told_apart(tiny_model):
    model = AutoModelForCausalLM.from_pretrained(tiny_model("llama"))
    alike = layout_of(model)
    model.model.layers[1].self_attn = torch.nn.Identity()
    model.model.layers[2].mlp.up_proj = torch.nn.Linear(32, 40)
    layout = layout_of(model)
    found = [(linear.name, linear.out_features, linear.layers) for linear in layout.targets(("q_proj", "up_proj"))]
    assert found == [
        ("self_attn.q_proj", 32, (0, 2, 3)),
        ("mlp.up_proj", 48, (0, 1, 3)),
        ("mlp.up_proj", 40, (2,)),
    ]
    assert [linear.leaf for linear in layout.linears_of(1)] == ["gate_proj", "up_proj", "down_proj"]
    assert layout.adapts((1, 2), ("q_proj",))
    assert not layout.adapts((1,), ("q_proj",))
    assert Layout.model_validate_json(layout.model_dump_json()) == layout
    # As it was written before layers could differ.
    assert "layers" not in alike.model_dump()["linears"][0]


def test_replaced_modules_are_refused_with_what_was_found(tiny_model):
    model = AutoModelForCausalLM.from_pretrained(tiny_model("llama"))
    for layer in model.model.layers:
        layer.mlp = torch.nn.Identity()
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
