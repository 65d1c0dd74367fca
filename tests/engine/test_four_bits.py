"""Training on a base in 4 bits (QLoRA); runs where bitsandbytes is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from trainings import NARROW, SHORT

from bandsearch.engine.engine import Engine
from bandsearch.engine.setup import EngineSetup
from bandsearch.models.aliases import resolve
from bandsearch.models.loading import dense_weight, load_model
from bandsearch.values.errors import UsageError
from bandsearch.values.levers import Levers
from bandsearch.values.spec import ModelSpec

INSTALLED = importlib.util.find_spec("bitsandbytes") is not None


@pytest.fixture(scope="module")
def four_bits(setup_of: Callable[[str], EngineSetup], tiny_model: Callable[..., Path]) -> EngineSetup:
    """Wide enough for the blocks in which weights are quantised."""
    source = resolve(ModelSpec(name=str(tiny_model("llama", width=128))))
    return setup_of("llama").model_copy(update={"source": source, "dtype": "nf4"})


@pytest.mark.skipif(not INSTALLED, reason="bitsandbytes is not installed")
def test_every_lever_holds_on_a_base_in_four_bits(four_bits: EngineSetup) -> None:
    readings = []
    for levers in (Levers(length_grouping=False), Levers.none()):
        engine = Engine.load(four_bits.model_copy(update={"levers": levers}))
        assert engine.notes == ()
        session = engine.admit(NARROW, SHORT)
        readings.append([engine.advance(session, SHORT.steps).loss, *engine.train_losses(session)])
    assert readings[0] == pytest.approx(readings[1], abs=1e-4)
    assert readings[0][-1] < readings[0][1]


@pytest.mark.skipif(not INSTALLED, reason="bitsandbytes is not installed")
def test_the_weight_is_the_one_in_numbers(four_bits: EngineSetup) -> None:
    source = four_bits.source
    path = "model.layers.0.mlp.up_proj"
    rounded = dense_weight(load_model(source, "nf4").get_submodule(path))
    exact = dense_weight(load_model(source, "fp32").get_submodule(path))
    assert rounded.shape == exact.shape
    assert float(torch.linalg.vector_norm(rounded - exact)) < 0.2 * float(torch.linalg.vector_norm(exact))


@pytest.mark.skipif(INSTALLED, reason="bitsandbytes is installed")
def test_without_bitsandbytes_it_says_how_to_get_it(setup_of: Callable[[str], EngineSetup]) -> None:
    with pytest.raises(UsageError, match="bitsandbytes"):
        load_model(setup_of("llama").source, "nf4")
