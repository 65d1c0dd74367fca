"""A good adapter passes; broken in each of the ways that nobody else reports, it is named."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bandsearch.adapters.verify import Code, Severity, require_sound, verify_adapter
from bandsearch.values.errors import AdapterError

Config = dict[str, Any]
Tensors = dict[str, torch.Tensor]
# vLLM has no LoRA for them, or not for the model at all.
NOT_SERVED = ("stablelm", "gpt2", "gptj", "falcon", "bloom")
# Of these nothing is known.
NOT_SERVED += ("ministral3", "olmo_hybrid", "lfm2", "qwen3_5_text", "qwen3_5_moe_text", "gemma4_text")
Q = "base_model.model.model.layers.1.self_attn.q_proj"


def break_config(**changes: Any) -> Callable[[Config, Tensors], None]:
    return lambda config, tensors: config.update(changes)


def rename(old: str, new: str, everywhere: bool = True) -> Callable[[Config, Tensors], None]:
    def change(config: Config, tensors: Tensors) -> None:
        for name in [name for name in tensors if old in name][: None if everywhere else 1]:
            tensors[name.replace(old, new)] = tensors.pop(name)

    return change


def put(name: str, tensor: torch.Tensor) -> Callable[[Config, Tensors], None]:
    return lambda config, tensors: tensors.update({name: tensor})


def zero(factor: str) -> Callable[[Config, Tensors], None]:
    def change(config: Config, tensors: Tensors) -> None:
        for name in tensors:
            if factor in name:
                tensors[name] = torch.zeros_like(tensors[name])

    return change


def narrow(config: Config, tensors: Tensors) -> None:
    tensors[f"{Q}.lora_A.weight"] = tensors[f"{Q}.lora_A.weight"][:, :16].contiguous()


def resize(rank: int) -> Callable[[Config, Tensors], None]:
    def change(config: Config, tensors: Tensors) -> None:
        config.update(r=rank, lora_alpha=rank)
        for name, tensor in tensors.items():
            shape = (rank, tensor.shape[1]) if ".lora_A." in name else (tensor.shape[0], rank)
            tensors[name] = torch.ones(shape)

    return change


BREAKS: dict[str, tuple[Callable[[Config, Tensors], None], Code]] = {
    "the inner model instead of the causal one": (rename("model.model.layers", "model.layers"), Code.WRONG_PREFIX),
    "no PEFT prefix": (rename("base_model.model.", ""), Code.WRONG_PREFIX),
    "one key with another prefix": (rename("model.model", "module.model", everywhere=False), Code.WRONG_PREFIX),
    "layer 4 of 4": (rename(".layers.2.", ".layers.4."), Code.LAYER_OUT_OF_RANGE),
    "r halves the scale": (break_config(r=8), Code.RANK_MISMATCH),
    "factors of two ranks": (put(f"{Q}.lora_A.weight", torch.ones(2, 32)), Code.RANK_MISMATCH),
    "a narrow A": (narrow, Code.SHAPE_MISMATCH),
    "a short B": (put(f"{Q}.lora_B.weight", torch.ones(16, 4)), Code.SHAPE_MISMATCH),
    "a flat A": (put(f"{Q}.lora_A.weight", torch.ones(4 * 32)), Code.SHAPE_MISMATCH),
    "NaN": (put(f"{Q}.lora_B.weight", torch.full((32, 4), float("nan"))), Code.NOT_FINITE),
    "Inf": (put(f"{Q}.lora_A.weight", torch.full((4, 32), float("inf"))), Code.NOT_FINITE),
    "B still zero": (zero("lora_B"), Code.SERVES_THE_BASE),
    "A zero": (zero("lora_A"), Code.SERVES_THE_BASE),
    "no tensors": (lambda config, tensors: tensors.clear(), Code.NO_TENSORS),
    "DoRA": (break_config(use_dora=True), Code.UNSUPPORTED_METHOD),
    "biases": (break_config(bias="lora_only"), Code.TRAINED_BIAS),
    "a whole head": (break_config(modules_to_save=["lm_head"]), Code.UNSUPPORTED_METHOD),
    "AdaLoRA": (break_config(peft_type="ADALORA"), Code.UNSUPPORTED_METHOD),
    "IA3": (break_config(peft_type="IA3", r=None), Code.UNSUPPORTED_METHOD),
    "experts": (break_config(target_parameters=["mlp.experts"]), Code.UNSUPPORTED_METHOD),
    "KaSA": (break_config(kasa_config={"beta": 1e-4, "gamma": 1e-3}), Code.UNSUPPORTED_INIT),
    "PiSSA": (break_config(init_lora_weights="pissa"), Code.UNSUPPORTED_INIT),
    "PiSSA in steps": (break_config(init_lora_weights="pissa_niter_16"), Code.UNSUPPORTED_INIT),
    "ranks by pattern": (break_config(rank_pattern={"q_proj": 4}), Code.PATTERNS),
    "alphas by pattern": (break_config(alpha_pattern={"q_proj": 4}), Code.PATTERNS),
    "an adapter's name": (rename(".weight", ".default.weight"), Code.ADAPTER_NAME_IN_KEYS),
    "A without B": (lambda config, tensors: tensors.pop(f"{Q}.lora_B.weight"), Code.MISSING_PAIR),
    "an unknown module": (rename("q_proj", "query"), Code.UNKNOWN_MODULE),
    "a stray tensor": (put("base_model.model.extra", torch.ones(2)), Code.UNKNOWN_MODULE),
    "the output head": (put("base_model.model.lm_head.lora_A.weight", torch.ones(4, 32)), Code.EMBEDDING),
    "the embedding": (put("base_model.model.model.embed_tokens.lora_embedding_A", torch.ones(4, 9)), Code.EMBEDDING),
    "targets that leave out tensors": (break_config(target_modules=["v_proj"]), Code.TARGETS_DIFFER),
    "layers that leave out tensors": (
        break_config(target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], layers_to_transform=[2]),
        Code.TARGETS_DIFFER,
    ),
    "rank 513": (resize(513), Code.RANK_NOT_SERVED),
    "r is text": (break_config(r="4"), Code.UNREADABLE_CONFIG),
    "alpha is zero": (break_config(lora_alpha=0), Code.UNREADABLE_CONFIG),
}


def rewrite(path: Path, change: Callable[[Config, Tensors], None]) -> None:
    config = json.loads((path / "adapter_config.json").read_text())
    tensors = load_file(path / "adapter_model.safetensors")
    change(config, tensors)
    (path / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, path / "adapter_model.safetensors")


def test_a_good_export_has_no_findings(export, family: str):
    exported = export(family)
    codes = [finding.code for finding in verify_adapter(exported.path, exported.layout)]
    assert codes == ([Code.FAMILY_NOT_SERVED] if family in NOT_SERVED else [])


@pytest.mark.parametrize("name", BREAKS)
def test_each_break_is_named(export, name: str):
    exported = export("llama", targets=("attention",))
    change, code = BREAKS[name]
    rewrite(exported.path, change)
    findings = verify_adapter(exported.path, exported.layout)
    assert code in {finding.code for finding in findings if finding.severity is Severity.ERROR}
    assert all(finding.message and finding.remedy for finding in findings)
    first = next(finding for finding in findings if finding.severity is Severity.ERROR)
    with pytest.raises(AdapterError, match=re.escape(f"is not sound: {first.message} {first.remedy}")):
        require_sound(exported.path, exported.layout)


def test_one_break_is_one_finding_with_its_extent(export):
    exported = export("llama", targets=("attention",))
    rewrite(exported.path, BREAKS["the inner model instead of the causal one"][0])
    (finding,) = verify_adapter(exported.path, exported.layout)
    assert "for 7 more" in finding.message


def test_a_module_in_a_layer_that_has_none_of_its_name(export):
    exported = export("qwen3_5")
    prefix = "base_model.model.model.language_model.layers"

    def swap(_: Config, tensors: Tensors) -> None:
        for factor in ("lora_A", "lora_B"):
            name = f"{prefix}.1.self_attn.q_proj.{factor}.weight"
            tensors[name.replace(".1.", ".2.")] = tensors.pop(name)

    rewrite(exported.path, swap)
    findings = verify_adapter(exported.path, exported.layout)
    assert "Layer 2 of this qwen3_5 model has no self_attn.q_proj." in [finding.message for finding in findings]


def test_a_rank_above_the_default_says_what_to_pass(export):
    exported = export("llama", rank=20)
    (finding,) = require_sound(exported.path, exported.layout)
    assert (finding.code, finding.severity) == (Code.NEEDS_MAX_LORA_RANK, Severity.WARNING)
    assert "--max-lora-rank 32" in finding.remedy


@pytest.mark.parametrize(
    ("file", "content", "code"),
    [
        ("adapter_config.json", None, Code.MISSING_FILE),
        ("adapter_config.json", b"{", Code.UNREADABLE_CONFIG),
        ("adapter_config.json", b"\xff\xfe", Code.UNREADABLE_CONFIG),
        ("adapter_config.json", b"[]", Code.UNREADABLE_CONFIG),
        ("adapter_model.safetensors", None, Code.MISSING_FILE),
        ("adapter_model.safetensors", b"", Code.UNREADABLE_WEIGHTS),
        ("adapter_model.safetensors", b"\x00" * 100, Code.UNREADABLE_WEIGHTS),
    ],
)
def test_unreadable_files_are_findings(export, file: str, content: bytes | None, code: Code):
    exported = export("llama")
    (exported.path / file).unlink()
    if content is not None:
        (exported.path / file).write_bytes(content)
    assert [finding.code for finding in verify_adapter(exported.path, exported.layout)] == [code]


def test_a_truncated_weight_file_is_a_finding(export):
    exported = export("llama")
    file = exported.path / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    assert [finding.code for finding in verify_adapter(exported.path, exported.layout)] == [Code.UNREADABLE_WEIGHTS]


def test_no_directory_is_an_error(export, tmp_path: Path):
    exported = export("llama")
    with pytest.raises(AdapterError, match="no adapter directory"):
        verify_adapter(tmp_path / "nowhere", exported.layout)
