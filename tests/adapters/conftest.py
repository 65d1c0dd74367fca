"""A trained-looking adapter on a tiny model, exported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from bandsearch.adapters import lora
from bandsearch.adapters.export import export_adapter
from bandsearch.models.aliases import resolve
from bandsearch.models.families import layout_of
from bandsearch.models.loading import load_model
from bandsearch.values.band import Band
from bandsearch.values.candidate import Candidate
from bandsearch.values.layout import Layout
from bandsearch.values.source import Source
from bandsearch.values.spec import ModelSpec

IDS = torch.tensor([[5, 60, 7, 300, 9, 11, 12]])


@dataclass(frozen=True)
class Exported:
    path: Path
    source: Source
    layout: Layout
    candidate: Candidate
    trained: torch.Tensor
    base: torch.Tensor


def a_candidate(**changes: Any) -> Candidate:
    values = {"bands": (Band(start=1, stop=3),), "rank": 4, "alpha": 8, "targets": ("all",), "learning_rate": 1e-3}
    return Candidate(**(values | changes))


@pytest.fixture
def export(tiny_model: Callable[[str], Path], tmp_path: Path) -> Callable[..., Exported]:
    """`export(family, **candidate)`: random factors on both sides, written to a fresh directory."""

    def write(family: str, **changes: Any) -> Exported:
        source = resolve(ModelSpec(name=str(tiny_model(family))))
        model = load_model(source, "fp32")
        layout = layout_of(model)
        candidate = a_candidate(**changes)
        base = model(IDS).logits
        peft_model = lora.attach(model, candidate, layout, seed=0)
        generator = torch.Generator().manual_seed(1)
        tensors = {
            name: tensor if ".lora_A." in name else torch.randn(tensor.shape, generator=generator) * 0.05
            for name, tensor in lora.tensors_of(peft_model).items()
        }
        lora.load_tensors(peft_model, tensors)
        trained = peft_model(IDS).logits
        path = tmp_path / "adapter"
        export_adapter(tensors, candidate, layout, source, path, "# A card\n")
        return Exported(path, source, layout, candidate, trained.detach(), base.detach())

    return write
