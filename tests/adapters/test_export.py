"""Exported adapters, read back by PEFT alone."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoConfig

from bandsearch.adapters import lora
from bandsearch.adapters.export import export_adapter, fold, write_card
from bandsearch.adapters.limits import chat_template_of
from bandsearch.models.config import auto_class
from bandsearch.values.band import Band
from bandsearch.values.candidate import Candidate, Init, Method
from bandsearch.values.errors import AdapterError
from bandsearch.values.layout import Layout, Linear
from bandsearch.values.source import Source

IDS = torch.tensor([[5, 60, 7, 300, 9, 11, 12]])


def read_back(exported) -> torch.Tensor:
    config = AutoConfig.from_pretrained(exported.source.location)
    base = auto_class(config).from_pretrained(exported.source.location, dtype=torch.float32)
    return PeftModel.from_pretrained(base, exported.path).eval()(IDS).logits


def test_peft_reads_back_the_trained_model(export, family: str):
    exported = export(family)
    assert (exported.trained - exported.base).abs().max() > 1e-2
    assert (read_back(exported) - exported.trained).abs().max() < 1e-5


@pytest.mark.parametrize(
    "changes",
    [
        {"method": Method.RSLORA, "rank": 3, "alpha": 5.5},
        {"init": Init.ORTHOGONAL},
        {"bands": (Band(start=0, stop=1), Band(start=3, stop=4)), "targets": ("q_proj", "down_proj")},
        {"bands": (Band(start=0, stop=4),), "rank": 7, "alpha": 1},
        {"targets": ("v_proj",), "rank": 24},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_every_kind_of_candidate_is_written_plain(export, changes: dict):
    exported = export("qwen2", **changes)
    assert (read_back(exported) - exported.trained).abs().max() < 1e-5
    config = json.loads((exported.path / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == exported.candidate.rank
    assert not config["use_rslora"]
    assert not config["rank_pattern"]
    assert not config["alpha_pattern"]
    assert config["task_type"] == "CAUSAL_LM"
    assert config["base_model_name_or_path"] == exported.source.location
    assert tuple(config["target_modules"]) == lora.module_paths(exported.candidate, exported.layout)


def test_different_ranks_are_padded_to_one():
    linears = tuple(Linear(name=n, group="attention", in_features=6, out_features=5) for n in ("q_proj", "v_proj"))
    layout = Layout(family="x", layers_path="h", layer_count=1, hidden_size=6, linears=linears)
    candidate = Candidate(
        bands=(Band(start=0, stop=1),), rank=4, alpha=2, targets=("all",), learning_rate=1, method=Method.RSLORA
    )
    tensors = {}
    for path, rank in (("h.0.q_proj", 2), ("h.0.v_proj", 4)):
        a, b = lora.tensor_names(path)
        tensors |= {a: torch.randn(rank, 6), b: torch.randn(5, rank)}
    folded = fold(tensors, candidate, layout)
    for path in ("h.0.q_proj", "h.0.v_proj"):
        a, b = lora.tensor_names(path)
        assert folded[a].shape == (4, 6)
        assert folded[b].shape == (5, 4)
        assert torch.allclose(folded[b] @ folded[a], candidate.scale * tensors[b] @ tensors[a], atol=1e-6)


def an_export(destination: Path, spoil: Callable[[dict], None] = lambda tensors: None, chat_template: str = "") -> None:
    linear = Linear(name="q_proj", group="attention", in_features=6, out_features=5)
    layout = Layout(family="x", layers_path="h", layer_count=1, hidden_size=6, linears=(linear,))
    candidate = Candidate(bands=(Band(start=0, stop=1),), rank=4, alpha=2, targets=("all",), learning_rate=1)
    tensors = lora.initial_tensors(candidate, layout, 0)
    spoil(tensors)
    source = Source(location="org/name", is_local=False, slug="name")
    export_adapter(tensors, candidate, layout, source, destination, "# Card\n", chat_template)


def test_a_second_export_replaces_the_first_and_the_card_can_be_renewed(tmp_path: Path):
    destination = tmp_path / "deep" / "adapter"
    an_export(destination)
    (destination / "leftover").touch()
    an_export(destination)
    assert sorted(p.name for p in destination.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    write_card(destination, "# With numbers\n")
    assert (destination / "README.md").read_text() == "# With numbers\n"
    assert [p.name for p in destination.parent.iterdir()] == ["adapter"]


def test_a_chat_template_is_written_as_it_stands_and_goes_with_its_adapter(tmp_path: Path):
    destination = tmp_path / "adapter"
    an_export(destination, chat_template="{{ messages }}\n\n")
    written = chat_template_of(destination)
    assert written == destination / "chat_template.jinja"
    assert written.read_text() == "{{ messages }}\n\n"
    an_export(destination)
    assert chat_template_of(destination) is None


def test_a_directory_that_is_something_else_is_left_alone(tmp_path: Path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(AdapterError, match="is not an adapter"):
        an_export(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_diverged_adapter_is_refused(tmp_path: Path):
    def spoil(tensors: dict) -> None:
        next(iter(tensors.values()))[0, 0] = float("nan")

    with pytest.raises(AdapterError, match="NaN or Inf"):
        an_export(tmp_path / "adapter", spoil)
    assert not list(tmp_path.iterdir())


def test_tensors_of_another_candidate_are_refused(tmp_path: Path):
    with pytest.raises(AdapterError, match="do not fit the candidate"):
        an_export(tmp_path / "adapter", lambda tensors: tensors.pop(next(iter(tensors))))


@pytest.mark.parametrize("existing", [False, True])
def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, monkeypatch, existing: bool):
    destination = tmp_path / "adapter"
    if existing:
        an_export(destination)
        before = load_file(destination / "adapter_model.safetensors")

    def full(path: Path, content: bytes) -> None:
        path.open("wb").write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        # Which the run that exports says how to go on from.
        with pytest.raises(OSError, match="No space left"):
            an_export(destination)
    assert [p.name for p in tmp_path.iterdir()] == (["adapter"] if existing else [])
    if existing:
        after = load_file(destination / "adapter_model.safetensors")
        assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_destination_that_cannot_be_written_is_an_error_in_words(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(AdapterError, match="cannot be written"):
        an_export(tmp_path / "file" / "adapter")
