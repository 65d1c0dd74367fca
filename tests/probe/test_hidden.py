"""Hidden states of decoders whose layers are not all alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bandsearch.adapters.lora import initial_tensors
from bandsearch.models.aliases import resolve
from bandsearch.models.families import layout_of
from bandsearch.models.loading import load_model
from bandsearch.probe.hidden import hidden_states, relative_changes
from bandsearch.values.candidate import Candidate
from bandsearch.values.spec import ModelSpec


@pytest.mark.parametrize("family", ["gemma4_text", "qwen3_5"])
def test_every_layer_shows_every_token_and_how_far_its_own_modules_moved(
    tiny_model: Callable[[str], Path], family: str
) -> None:
    model = load_model(resolve(ModelSpec(name=str(tiny_model(family)))))
    layout = layout_of(model)
    example: Any = SimpleNamespace(input_ids=np.array([5, 60, 7, 300, 9, 11], dtype=np.int32))
    states = hidden_states(model, layout, [example])
    assert [tuple(layer[0].shape) for layer in states] == [(6, 32)] * 4
    candidate = Candidate.full_depth(4, rank=2, alpha=4, learning_rate=1e-3)
    tensors = {name: tensor + 1 for name, tensor in initial_tensors(candidate, layout, 0).items()}
    changes = relative_changes(model, layout, tensors, candidate.scale)
    assert len(changes) == 4
    assert min(changes) > 0
