"""The verdict on a served adapter, and what is said without vLLM. The engine itself runs in `make test-vllm`."""

from __future__ import annotations

import sys

import pytest

from bandsearch.adapters.serving import ServingReport, compare_with_vllm
from bandsearch.models.loading import load_model
from bandsearch.values.errors import AdapterError, DependencyError


def a_report(**changes: object) -> ServingReport:
    figures = {"difference": 4e-6, "base_difference": 1e-6, "effect": 1.0, "expected_effect": 1.0}
    counts = {"rank": 8, "prompts": 1, "compared": 9, "greedy_equal": 4, "greedy_total": 4}
    return ServingReport(
        **({"versions": {}, "family": "qwen2", "tolerance": 1e-3, "seconds": 1.0} | figures | counts | changes)
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"effect": 0.0, "difference": 1.0}, "serves the base"),
        ({"effect": 0.5, "difference": 0.5}, "differs from the trained one by 0.5"),
        ({"expected_effect": 1e-4, "effect": 1e-4}, "too little to tell"),
        ({"difference": float("nan")}, "differs from the trained one by nan"),
        ({"effect": float("nan")}, "serves the base"),
    ],
)
def test_an_adapter_must_be_served_as_trained_and_unlike_the_base(changes: dict, words: str):
    assert a_report().problem is None
    assert words in a_report(**changes).problem


def test_what_rounding_does_to_the_base_is_no_fault_of_the_adapter():
    rounded = {"base_difference": 0.1, "difference": 0.25, "effect": 2.0, "expected_effect": 2.0}
    assert a_report(**rounded).problem is None
    assert "differs from the trained one by 0.4" in a_report(**rounded | {"difference": 0.4}).problem
    assert "serves the base" in a_report(**rounded | {"effect": 0.2}).problem
    assert "too little to tell" in a_report(**rounded | {"expected_effect": 0.8}).problem
    # An engine that computes another base is not excused.
    assert "differs" in a_report(**rounded | {"base_difference": 3.0, "difference": 0.6}).problem


def test_without_vllm_the_remedy_is_named(export, monkeypatch):
    exported = export("llama")
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(DependencyError, match="make test-vllm"):
        compare_with_vllm(exported.path, load_model(exported.source), exported.layout, exported.source, [[5, 6]])


def test_what_vllm_cannot_serve_is_refused_before_it_starts(export):
    exported = export("gpt2")
    with pytest.raises(AdapterError, match="no LoRA adapters on gpt2"):
        compare_with_vllm(exported.path, load_model(exported.source), exported.layout, exported.source, [[5, 6]])
    (exported.path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(AdapterError, match="cannot be read"):
        compare_with_vllm(exported.path, load_model(exported.source), exported.layout, exported.source, [[5, 6]])
