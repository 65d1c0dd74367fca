"""Structural pre-flight: would this adapter be served as it was trained?

Much of what is wrong with an adapter raises nothing: vLLM loads it, lists it, and serves the base, a part of the
update or a wrongly scaled one. Each of these has a code here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from bandsearch.adapters.export import CONFIG_FILE, WEIGHTS_FILE
from bandsearch.adapters.limits import DEFAULT_MAX_LORA_RANK, INIT_LABELS, MAX_LORA_RANKS, max_lora_rank, merging
from bandsearch.adapters.lora import PREFIX
from bandsearch.values.errors import AdapterError
from bandsearch.values.layout import Layout, Linear, Serving
from bandsearch.values.value import Value


class Severity(StrEnum):
    ERROR = "error"
    WARNING = "warning"


class Code(StrEnum):
    MISSING_FILE = "missing_file"
    UNREADABLE_CONFIG = "unreadable_config"
    UNREADABLE_WEIGHTS = "unreadable_weights"
    UNSUPPORTED_METHOD = "unsupported_method"
    TRAINED_BIAS = "trained_bias"
    UNSUPPORTED_INIT = "unsupported_init"
    PATTERNS = "patterns"
    NO_TENSORS = "no_tensors"
    ADAPTER_NAME_IN_KEYS = "adapter_name_in_keys"
    WRONG_PREFIX = "wrong_prefix"
    EMBEDDING = "embedding"
    UNKNOWN_MODULE = "unknown_module"
    LAYER_OUT_OF_RANGE = "layer_out_of_range"
    MISSING_PAIR = "missing_pair"
    RANK_MISMATCH = "rank_mismatch"
    SHAPE_MISMATCH = "shape_mismatch"
    NOT_FINITE = "not_finite"
    SERVES_THE_BASE = "serves_the_base"
    TARGETS_DIFFER = "targets_differ"
    RANK_NOT_SERVED = "rank_not_served"
    NEEDS_MAX_LORA_RANK = "needs_max_lora_rank"
    FAMILY_NOT_SERVED = "family_not_served"


# What only vLLM minds: PEFT loads such adapters as they were trained.
FOR_VLLM_ALONE = frozenset(
    {
        Code.UNSUPPORTED_METHOD,
        Code.PATTERNS,
        Code.EMBEDDING,
        Code.UNKNOWN_MODULE,
        Code.SERVES_THE_BASE,
        Code.RANK_NOT_SERVED,
    }
)


class Finding(Value):
    """One thing wrong with an adapter. An error means wrong results somewhere; a warning, that care is needed."""

    code: Code
    severity: Severity
    message: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.message} {self.remedy}"


_EXPORT = "Export it again with bandsearch."
_TENSOR = re.compile(r"(?P<module>.+)\.lora_(?P<factor>[AB])(?P<adapter>\.[^.]+)?\.weight")

_EMBEDDING = re.compile(r"\.(lm_head|embed_out|embed_tokens|embed_in|wte|wpe|word_embeddings|lora_embedding_[AB])\b")


def verify_adapter(path: Path, layout: Layout) -> tuple[Finding, ...]:
    """Everything wrong with the adapter in directory `path` on a model of this layout; empty if it is sound.

    Reads the adapter's files only, no model. Raises AdapterError if there is no such directory.
    """
    if not path.is_dir():
        raise AdapterError(f"There is no adapter directory {path}.", "Give the directory with adapter_config.json.")
    config = _read_config(path)
    if isinstance(config, Finding):
        return (config,)
    tensors = _read_tensors(path)
    findings = [*_check_config(config), *_check_family(layout)]
    if isinstance(tensors, Finding):
        return (*findings, tensors)
    return (*findings, *_one_per_code(_check_tensors(tensors, config, layout)))


def require_sound(path: Path, layout: Layout, *, passing: frozenset[Code] = frozenset[Code]()) -> tuple[Finding, ...]:
    """The findings, none of which is an error but of the codes in `passing`. Raises AdapterError with the first that
    is."""
    findings = verify_adapter(path, layout)
    for finding in findings:
        if finding.severity is Severity.ERROR and finding.code not in passing:
            raise AdapterError(f"{path} is not sound: {finding.message}", finding.remedy)
    return findings


def _one_per_code(findings: Iterable[Finding]) -> Iterator[Finding]:
    """The first finding of each code, with the number of others: a wrong prefix is wrong in hundreds of tensors."""
    groups: dict[Code, list[Finding]] = {}
    for finding in findings:
        groups.setdefault(finding.code, []).append(finding)
    for first, *others in groups.values():
        more = f" The same holds for {len(others)} more." if others else ""
        yield first.model_copy(update={"message": first.message + more})


def _error(code: Code, message: str, remedy: str = _EXPORT) -> Finding:
    return Finding(code=code, severity=Severity.ERROR, message=message, remedy=remedy)


def _warning(code: Code, message: str, remedy: str) -> Finding:
    return Finding(code=code, severity=Severity.WARNING, message=message, remedy=remedy)


def _read_config(path: Path) -> dict[str, Any] | Finding:
    file = path / CONFIG_FILE
    if not file.is_file():
        return _error(Code.MISSING_FILE, f"{CONFIG_FILE} is missing.", "Give the directory of a PEFT adapter.")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return _error(Code.UNREADABLE_CONFIG, f"{CONFIG_FILE} cannot be read ({error}).")
    if not isinstance(config, dict):
        return _error(Code.UNREADABLE_CONFIG, f"{CONFIG_FILE} is not a JSON object.")
    for key, kinds in (("r", (int,)), ("lora_alpha", (int, float))):
        value = config.get(key)
        # Other methods than LoRA have no rank; they are named as what they are further on.
        if config.get("peft_type") == "LORA" and (
            not isinstance(value, kinds) or isinstance(value, bool) or not value > 0
        ):
            return _error(Code.UNREADABLE_CONFIG, f"{key} in {CONFIG_FILE} is {value!r}, not a positive number.")
    return config


def _read_tensors(path: Path) -> dict[str, Tensor] | Finding:
    file = path / WEIGHTS_FILE
    if not file.is_file():
        return _error(Code.MISSING_FILE, f"{WEIGHTS_FILE} is missing.", "Save the adapter as safetensors.")
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        return _error(Code.UNREADABLE_WEIGHTS, f"{WEIGHTS_FILE} cannot be read ({error}).", "Copy or export it again.")


def _check_config(config: Mapping[str, Any]) -> Iterator[Finding]:
    merge = "Merge it into the base weights (merge_and_unload) and serve those."
    if config.get("peft_type") != "LORA":
        yield _error(Code.UNSUPPORTED_METHOD, f"vLLM serves LoRA only, not {config.get('peft_type')}.", merge)
    if config.get("use_dora"):
        yield _error(Code.UNSUPPORTED_METHOD, "vLLM refuses DoRA.", merge)
    if config.get("bias", "none") != "none" or config.get("lora_bias"):
        yield _error(Code.TRAINED_BIAS, "vLLM refuses adapters with trained biases.", merge)
    if config.get("modules_to_save"):
        yield _error(Code.UNSUPPORTED_METHOD, f"vLLM refuses modules_to_save ({config['modules_to_save']}).", merge)
    if config.get("target_parameters"):
        yield _error(Code.UNSUPPORTED_METHOD, "LoRA on bare parameters (target_parameters) is not served.", merge)
    label = config.get("init_lora_weights", True)
    if isinstance(label, str) and label.lower() not in INIT_LABELS:
        yield _error(
            Code.UNSUPPORTED_INIT,
            f"vLLM refuses init_lora_weights={label!r}, which changes the base weights.",
            "Convert it with save_pretrained(path_initial_model_for_weight_conversion=...).",
        )
    if config.get("kasa_config"):
        yield _error(
            Code.UNSUPPORTED_INIT,
            "KaSA cuts the base weights down when it is loaded, so it is no adapter of that base.",
            "Merge it and give the merged model.",
        )
    patterns = [key for key in ("rank_pattern", "alpha_pattern") if config.get(key)]
    if patterns:
        yield _error(
            Code.PATTERNS, f"vLLM before 0.32 ignores {' and '.join(patterns)} and scales wrongly without a word."
        )


def _check_family(layout: Layout) -> Iterator[Finding]:
    if layout.serving is Serving.NONE:
        yield _warning(
            Code.FAMILY_NOT_SERVED,
            f"vLLM serves no LoRA adapters on {layout.family} models.",
            f"Use it through Transformers and PEFT, or merge a run's own with `{merging()}`.",
        )
    elif layout.serving is Serving.UNKNOWN:
        yield _warning(
            Code.FAMILY_NOT_SERVED,
            f"It is not known whether vLLM serves LoRA adapters on {layout.family} models.",
            "Compare it through the real engine with `bandsearch verify --runtime vllm`.",
        )


def _check_tensors(tensors: Mapping[str, Tensor], config: Mapping[str, Any], layout: Layout) -> Iterator[Finding]:
    if not tensors:
        yield _error(Code.NO_TENSORS, f"{WEIGHTS_FILE} holds no tensors, so the base would be served.")
        return
    broken = sorted(name for name, tensor in tensors.items() if not torch.isfinite(tensor).all())
    if broken:
        yield _error(
            Code.NOT_FINITE,
            f"{len(broken)} tensors hold NaN or Inf ({broken[0]}); served once, they poison later requests too.",
            "Train again with a lower learning rate.",
        )
    factors: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = _TENSOR.fullmatch(name)
        if _EMBEDDING.search(name):
            yield _error(Code.EMBEDDING, f"{name} changes an embedding or the output head.", "Train without it.")
        elif match is None:
            yield _unknown(name, layout)
        elif match["adapter"]:
            yield _error(Code.ADAPTER_NAME_IN_KEYS, f"Tensor {name} carries an adapter name; vLLM refuses it.")
        else:
            factors.setdefault(match["module"], {})[match["factor"]] = tensor
    sound: list[str] = []
    for module, pair in factors.items():
        problem = _place_problem(module, layout)
        if problem is not None:
            yield problem
        elif len(pair) < 2:
            yield _error(Code.MISSING_PAIR, f"{module} has only one of the factors A and B.")
        else:
            index, inside = _inside_layer(module, layout)
            linear = next(each for each in layout.linears_of(int(index)) if each.name == inside)
            yield from _check_shapes(module, pair["A"], pair["B"], linear, config)
            sound.append(module)
    yield from _check_targets([module.removeprefix(PREFIX) for module in sound], config)
    if sound and not any(factors[module]["A"].any() and factors[module]["B"].any() for module in sound):
        yield _error(
            Code.SERVES_THE_BASE, "Every A or B is zero, so the base would be served.", "Export a trained adapter."
        )
    yield from _check_rank(max((min(pair["A"].shape) for pair in factors.values() if "A" in pair), default=0), config)


def _place_problem(module: str, layout: Layout) -> Finding | None:
    if not module.startswith(f"{PREFIX}{layout.layers_path}."):
        return _error(
            Code.WRONG_PREFIX,
            f"Tensors of {module} do not begin with {PREFIX}{layout.layers_path}; "
            "vLLM would load them, list the adapter and serve the base.",
        )
    index, inside = _inside_layer(module, layout)
    if not index.isdecimal() or all(linear.name != inside for linear in layout.linears):
        return _unknown(module, layout)
    if int(index) >= layout.layer_count:
        return _error(
            Code.LAYER_OUT_OF_RANGE,
            f"{module} is in layer {index} of a model with {layout.layer_count} layers; vLLM would drop it.",
            "Use the model it was trained on.",
        )
    if all(linear.name != inside for linear in layout.linears_of(int(index))):
        return _error(Code.UNKNOWN_MODULE, f"Layer {index} of this {layout.family} model has no {inside}.", _EXPORT)
    return None


def _inside_layer(module: str, layout: Layout) -> tuple[str, str]:
    """("3", "self_attn.q_proj") of "base_model.model.model.layers.3.self_attn.q_proj"."""
    index, _, inside = module.removeprefix(f"{PREFIX}{layout.layers_path}.").partition(".")
    return index, inside


def _unknown(name: str, layout: Layout) -> Finding:
    known = ", ".join(dict.fromkeys(linear.name for linear in layout.linears))
    return _error(
        Code.UNKNOWN_MODULE, f"{name} is not a LoRA factor of a linear module of {layout.family} ({known}).", _EXPORT
    )


def _check_shapes(module: str, a: Tensor, b: Tensor, linear: Linear, config: Mapping[str, Any]) -> Iterator[Finding]:
    # Ranks set by pattern are a finding of their own.
    rank = a.shape[0] if config.get("rank_pattern") else config.get("r")
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != linear.in_features or b.shape[0] != linear.out_features:
        yield _error(
            Code.SHAPE_MISMATCH,
            f"{module} has A {list(a.shape)} and B {list(b.shape)}, but the module maps {linear.in_features} to "
            f"{linear.out_features} features; vLLM would copy them into a corner.",
            "Use the model it was trained on.",
        )
    elif a.shape[0] != b.shape[1] or a.shape[0] != rank:
        yield _error(
            Code.RANK_MISMATCH,
            f"{module} has factors of rank {a.shape[0]} and {b.shape[1]}, but r is {rank}: the scale would be wrong.",
        )


def _check_targets(modules: list[str], config: Mapping[str, Any]) -> Iterator[Finding]:
    """PEFT makes modules where the configuration says and drops tensors that have no module, with only a warning."""
    targets, layers = config.get("target_modules"), config.get("layers_to_transform")
    if not isinstance(targets, list):
        return
    # An empty list means all layers, as in PEFT.
    chosen = {layers} if isinstance(layers, int) else set(layers or ())
    dropped = [
        module
        for module in modules
        if not any(module == target or module.endswith(f".{target}") for target in targets)
        or (chosen and not chosen & {int(part) for part in module.split(".") if part.isdecimal()})
    ]
    if dropped:
        yield _error(
            Code.TARGETS_DIFFER,
            f"target_modules leaves out {len(dropped)} modules that have tensors ({dropped[0]}); PEFT would drop them.",
        )


def _check_rank(rank: int, config: Mapping[str, Any]) -> Iterator[Finding]:
    declared = config.get("r")
    rank = max(rank, declared if isinstance(declared, int) else 0)
    allowed = max_lora_rank(rank)
    if allowed is None:
        yield _error(
            Code.RANK_NOT_SERVED,
            f"Rank {rank} is above the largest --max-lora-rank of vLLM, {MAX_LORA_RANKS[-1]}.",
            "Merge it into the base weights, or train a smaller rank.",
        )
    elif rank > DEFAULT_MAX_LORA_RANK:
        yield _warning(
            Code.NEEDS_MAX_LORA_RANK,
            f"Rank {rank} is above vLLM's default of {DEFAULT_MAX_LORA_RANK}.",
            f"Serve it with --max-lora-rank {allowed}.",
        )
