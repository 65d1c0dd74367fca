"""Attaching candidates to real (tiny) models."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bandsearch.adapters import lora
from bandsearch.models.aliases import resolve
from bandsearch.models.families import layout_of
from bandsearch.models.loading import load_model
from bandsearch.values.band import Band
from bandsearch.values.candidate import Candidate, Init, Method
from bandsearch.values.errors import AdapterError
from bandsearch.values.layout import Layout, Linear
from bandsearch.values.spec import ModelSpec

Models = Callable[[str], Path]
IDS = torch.tensor([[5, 60, 7, 300, 9, 11]])


def load(tiny_model: Models, family: str, dtype: str = "fp32"):
    model = load_model(resolve(ModelSpec(name=str(tiny_model(family)))), dtype)
    return model, layout_of(model)


def a_candidate(**changes: object) -> Candidate:
    values = {"bands": (Band(start=1, stop=3),), "rank": 4, "alpha": 8, "targets": ("all",), "learning_rate": 1e-3}
    return Candidate(**(values | changes))


def test_attach_changes_nothing_at_first_trains_only_factors_and_detaches_cleanly(tiny_model: Models, family: str):
    model, layout = load(tiny_model, family)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    base = model(IDS).logits
    candidate = a_candidate()
    peft_model = lora.attach(model, candidate, layout, seed=0)
    assert torch.equal(peft_model(IDS).logits, base)  # B is zero
    realised = sum(p.numel() for p in peft_model.parameters() if p.requires_grad)
    assert realised == lora.trainable_parameters(candidate, layout)
    adapted = {name.split(".lora_")[0] for name in lora.tensors_of(peft_model)}
    assert adapted == {lora.PREFIX + path for path in lora.module_paths(candidate, layout)}
    peft_model(IDS).logits.square().mean().backward()
    assert all(p.grad is not None for p in peft_model.parameters() if p.requires_grad)
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    assert not torch.allclose(peft_model(IDS).logits, base, atol=1e-3)
    back = lora.detach(peft_model)
    after = back.state_dict()
    assert back is model
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert torch.equal(back(IDS).logits, base)
    lora.detach(lora.attach(back, a_candidate(rank=2), layout, seed=0))


@pytest.mark.parametrize("init", Init)
def test_factors_depend_on_the_seed_alone(tiny_model: Models, init: Init):
    model, layout = load(tiny_model, "qwen2")
    found = []
    for global_seed, seed in ((1, 5), (2, 5), (1, 6)):
        torch.manual_seed(global_seed)
        state = torch.get_rng_state()
        peft_model = lora.attach(model, a_candidate(init=init), layout, seed)
        assert torch.equal(torch.get_rng_state(), state)
        found.append(lora.tensors_of(peft_model))
        lora.detach(peft_model)
    first, again, other = found
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if "lora_A" in name)
    expected = lora.initial_tensors(a_candidate(init=init), layout, 5)
    assert all(torch.equal(first[name], expected[name]) for name in first)


def test_bands_that_share_a_layer_start_equally_there(tiny_model: Models):
    _, layout = load(tiny_model, "llama")
    narrow = lora.initial_tensors(a_candidate(bands=(Band(start=2, stop=3),)), layout, 0)
    wide = lora.initial_tensors(a_candidate(bands=(Band(start=0, stop=4),)), layout, 0)
    assert all(torch.equal(narrow[name], wide[name]) for name in narrow)


@pytest.mark.parametrize("init", Init)
def test_initial_factors_have_peft_s_distribution_and_a_product_of_zero(init: Init):
    from peft import LoraConfig, get_peft_model

    layout = one_linear(96, 64)
    candidate = a_candidate(bands=(Band(start=0, stop=1),), rank=16, init=init)
    ours = list(lora.initial_tensors(candidate, layout, 0).values())
    label = {Init.KAIMING: True}.get(init, str(init))
    torch.manual_seed(0)
    reference = get_peft_model(
        torch.nn.Sequential(torch.nn.Linear(96, 64)), LoraConfig(r=16, target_modules=["0"], init_lora_weights=label)
    )
    theirs = [p for name, p in reference.named_parameters() if "lora_" in name]
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.shape == other.shape
        assert mine.std() == pytest.approx(other.std().item(), rel=0.1, abs=1e-6)
        assert mine.abs().max() <= other.abs().max() * 1.5 + 1e-6
    assert (ours[1] @ ours[0]).abs().max() < 1e-5


def test_orthogonal_needs_an_even_rank(tiny_model: Models):
    _, layout = load(tiny_model, "llama")
    with pytest.raises(AdapterError, match="even rank, not 3"):
        lora.initial_tensors(a_candidate(init=Init.ORTHOGONAL, rank=3), layout, 0)


@pytest.mark.parametrize("method", Method)
def test_update_is_scale_times_b_times_a(tiny_model: Models, method: Method):
    model, layout = load(tiny_model, "mistral")
    candidate = a_candidate(method=method, alpha=6, targets=("self_attn.q_proj",), bands=(Band(start=0, stop=1),))
    layer = model.model.layers[0].self_attn.q_proj
    x = torch.randn(3, layer.in_features, generator=torch.Generator().manual_seed(0))
    weight = layer.weight.clone()
    peft_model = lora.attach(model, candidate, layout, seed=0)
    tensors = {name: torch.randn(t.shape) for name, t in lora.tensors_of(peft_model).items()}
    lora.load_tensors(peft_model, tensors)
    a, b = (tensors[name] for name in lora.tensor_names("model.layers.0.self_attn.q_proj"))
    expected = x @ (weight + candidate.scale * b @ a).T
    assert torch.allclose(peft_model.base_model.model.model.layers[0].self_attn.q_proj(x), expected, atol=1e-4)
    lora.detach(peft_model)


def test_factors_stay_fp32_on_a_bf16_base(tiny_model: Models):
    model, layout = load(tiny_model, "qwen3", "bf16")
    peft_model = lora.attach(model, a_candidate(), layout, seed=0)
    dtypes = {p.dtype for p in peft_model.parameters() if p.requires_grad}
    assert dtypes == {torch.float32}
    assert peft_model(IDS).logits.dtype == torch.bfloat16
    lora.detach(peft_model)


def test_saved_tensors_are_copies_and_come_back(tiny_model: Models):
    model, layout = load(tiny_model, "phi3")
    peft_model = lora.attach(model, a_candidate(), layout, seed=0)
    tensors = lora.tensors_of(peft_model)
    parameters = [p for p in peft_model.parameters() if p.requires_grad]
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(1)
    lora.load_tensors(peft_model, tensors)
    assert all(torch.equal(t, tensors[n]) for n, t in lora.tensors_of(peft_model).items())
    assert [id(p) for p in peft_model.parameters() if p.requires_grad] == [id(p) for p in parameters]
    with pytest.raises(AdapterError, match="do not match"):
        lora.load_tensors(peft_model, dict(list(tensors.items())[1:]))
    name = next(iter(tensors))
    with pytest.raises(AdapterError, match="shape"):
        lora.load_tensors(peft_model, tensors | {name: torch.zeros(1, 1)})
    lora.detach(peft_model)


def test_attaching_says_nothing(tiny_model: Models, family: str, capfd: pytest.CaptureFixture[str]):
    model, layout = load(tiny_model, family)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lora.detach(lora.attach(model, a_candidate(), layout, seed=0))
    assert capfd.readouterr() == ("", "")


def test_a_band_outside_the_model_names_the_numbers(tiny_model: Models):
    model, layout = load(tiny_model, "llama")
    with pytest.raises(AdapterError, match=r"Band 2-8 .* has 4 layers.*inside 0-3"):
        lora.attach(model, a_candidate(bands=(Band(start=2, stop=9),)), layout, 0)


def test_an_unknown_target_names_the_choices(tiny_model: Models):
    model, layout = load(tiny_model, "llama")
    with pytest.raises(AdapterError, match=r"'qproj'.*attention, mlp, all, q_proj"):
        lora.attach(model, a_candidate(targets=("q_proj", "qproj")), layout, 0)


def test_a_layer_is_given_what_it_has_of_the_targets_and_a_band_with_none_is_refused(tiny_model: Models):
    _, layout = load(tiny_model, "qwen3_5_text")
    paths = lora.module_paths(a_candidate(targets=("q_proj", "in_proj_z", "up_proj")), layout)
    assert set(paths) == {
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.mlp.up_proj",
        "model.layers.2.linear_attn.in_proj_z",
        "model.layers.2.mlp.up_proj",
    }
    only_linear_attention = a_candidate(bands=(Band(start=2, stop=3),), targets=("q_proj", "v_proj"))
    with pytest.raises(AdapterError, match=r"Band 2 has no q_proj or v_proj in its layers; .* layers 1, 3 have"):
        lora.module_paths(only_linear_attention, layout)


def test_experts_are_not_adapted(tiny_model: Models):
    model, layout = load(tiny_model, "mixtral")
    with pytest.raises(AdapterError, match="experts are not adapted"):
        lora.module_paths(a_candidate(targets=("mlp",)), layout)
    paths = lora.module_paths(a_candidate(targets=("all",)), layout)
    assert paths == lora.module_paths(a_candidate(targets=("attention",)), layout)
    lora.detach(lora.attach(model, a_candidate(), layout, 0))


def one_linear(inputs: int, outputs: int) -> Layout:
    linear = Linear(name="q_proj", group="attention", in_features=inputs, out_features=outputs)
    return Layout(family="x", layers_path="h", layer_count=1, hidden_size=inputs, linears=(linear,))


@st.composite
def candidates(draw: st.DrawFn) -> Candidate:
    cuts = sorted(draw(st.sets(st.integers(0, 4), min_size=2, max_size=4)))
    bands = tuple(Band(start=a, stop=b) for a, b in zip(cuts[::2], cuts[1::2], strict=False))
    names = ("attention", "mlp", "all", "q_proj", "v_proj", "down_proj", "self_attn.o_proj", "mlp.up_proj")
    return a_candidate(
        bands=bands,
        rank=draw(st.integers(1, 9)),
        alpha=draw(st.floats(0.5, 64)),
        targets=tuple(draw(st.lists(st.sampled_from(names), min_size=1, max_size=3))),
        method=draw(st.sampled_from(Method)),
    )


@settings(max_examples=40, deadline=None)
@given(candidate=candidates())
def test_counted_parameters_are_the_realised_ones(tiny_model: Models, candidate: Candidate):
    model, layout = load(tiny_model, "qwen2")
    peft_model = lora.attach(model, candidate, layout, seed=0)
    realised = sum(p.numel() for p in peft_model.parameters() if p.requires_grad)
    assert realised == lora.trainable_parameters(candidate, layout)
    assert len(lora.tensors_of(peft_model)) == 2 * len(lora.module_paths(candidate, layout))
    lora.detach(peft_model)
