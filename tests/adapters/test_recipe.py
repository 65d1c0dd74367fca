"""A recipe means the same to PEFT as the candidate to bandsearch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from peft import get_peft_model
from peft.tuners.lora import LoraLayer

from bandsearch.adapters.lora import PREFIX, modules_of
from bandsearch.adapters.recipe import recipe
from bandsearch.models.aliases import resolve
from bandsearch.models.families import layout_of
from bandsearch.models.loading import load_model
from bandsearch.values.band import Band
from bandsearch.values.candidate import Candidate, Init, Method
from bandsearch.values.fidelity import Fidelity
from bandsearch.values.layout import Layout, Linear
from bandsearch.values.spec import ModelSpec

FIDELITY = Fidelity.final(60, batch_size=4, seed=3, validation_examples=8)


def test_it_adapts_what_the_candidate_does(tiny_model: Callable[[str], Path], family: str) -> None:
    model = load_model(resolve(ModelSpec(name=str(tiny_model(family)))), "fp32")
    layout = layout_of(model)
    candidate = Candidate(
        bands=(Band(start=0, stop=1), Band(start=layout.layer_count - 1, stop=layout.layer_count)),
        rank=4,
        alpha=6,
        targets=("all",),
        learning_rate=0.00125,
        method=Method.RSLORA,
        init=Init.ORTHOGONAL,
    )
    names: dict[str, Any] = {}
    exec(recipe(candidate, layout, FIDELITY), names)
    adapted = get_peft_model(model, names["adapter"])
    layers = {name: module for name, module in adapted.named_modules() if isinstance(module, LoraLayer)}
    assert set(layers) == {PREFIX + path for path in modules_of(candidate, layout)}
    assert {(module.r["default"], module.scaling["default"]) for module in layers.values()} == {(4, candidate.scale)}
    assert names["adapter"].init_lora_weights == "orthogonal"
    training = names["training"]
    assert (training.learning_rate, training.max_steps, training.train_batch_size) == (0.00125, 60, 4)
    assert (training.lr_scheduler_type, training.warmup_steps, training.seed) == ("linear", 6, 3)
    assert (training.weight_decay, training.max_grad_norm) == (0, 1)


def test_plain_lora_needs_no_more_than_a_rank_and_a_scale() -> None:
    linear = Linear(name="self_attn.q_proj", group="attention", in_features=8, out_features=8)
    layout = Layout(family="qwen2", layers_path="model.layers", layer_count=4, hidden_size=8, linears=(linear,))
    names: dict[str, Any] = {}
    candidate = Candidate.full_depth(4, rank=4, alpha=6, learning_rate=1e-3)
    exec(recipe(candidate, layout, FIDELITY), names)
    found = names["adapter"]
    assert (found.r, found.lora_alpha, found.use_rslora, found.init_lora_weights) == (4, 6, False, True)
