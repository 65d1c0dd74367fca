"""Model names: short aliases, hub ids and local directories become a `Source`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path

import bandsearch
from bandsearch.values.errors import ModelError
from bandsearch.values.source import Source
from bandsearch.values.spec import ModelSpec

__all__ = ["ALIASES", "DEMO", "Source", "resolve"]

DEMO = "demo"

ALIASES: Mapping[str, str] = {
    "qwen2.5-0.5b": "Qwen/Qwen2.5-0.5B",
    "qwen2.5-0.5b-instruct": "Qwen/Qwen2.5-0.5B-Instruct",
    "qwen2.5-1.5b": "Qwen/Qwen2.5-1.5B",
    "qwen2.5-1.5b-instruct": "Qwen/Qwen2.5-1.5B-Instruct",
    "qwen2.5-3b": "Qwen/Qwen2.5-3B",
    "qwen2.5-3b-instruct": "Qwen/Qwen2.5-3B-Instruct",
    "qwen2.5-7b": "Qwen/Qwen2.5-7B",
    "qwen2.5-7b-instruct": "Qwen/Qwen2.5-7B-Instruct",
    "qwen2.5-14b": "Qwen/Qwen2.5-14B",
    "qwen2.5-14b-instruct": "Qwen/Qwen2.5-14B-Instruct",
    "qwen2.5-32b": "Qwen/Qwen2.5-32B",
    "qwen2.5-32b-instruct": "Qwen/Qwen2.5-32B-Instruct",
    "qwen2.5-72b": "Qwen/Qwen2.5-72B",
    "qwen2.5-72b-instruct": "Qwen/Qwen2.5-72B-Instruct",
    "qwen2.5-coder-1.5b": "Qwen/Qwen2.5-Coder-1.5B",
    "qwen2.5-coder-1.5b-instruct": "Qwen/Qwen2.5-Coder-1.5B-Instruct",
    "qwen2.5-coder-3b": "Qwen/Qwen2.5-Coder-3B",
    "qwen2.5-coder-3b-instruct": "Qwen/Qwen2.5-Coder-3B-Instruct",
    "qwen2.5-coder-7b": "Qwen/Qwen2.5-Coder-7B",
    "qwen2.5-coder-7b-instruct": "Qwen/Qwen2.5-Coder-7B-Instruct",
    "qwen2.5-coder-14b": "Qwen/Qwen2.5-Coder-14B",
    "qwen2.5-coder-14b-instruct": "Qwen/Qwen2.5-Coder-14B-Instruct",
    "qwen2.5-coder-32b": "Qwen/Qwen2.5-Coder-32B",
    "qwen2.5-coder-32b-instruct": "Qwen/Qwen2.5-Coder-32B-Instruct",
    "qwen2.5-math-1.5b": "Qwen/Qwen2.5-Math-1.5B",
    "qwen2.5-math-7b": "Qwen/Qwen2.5-Math-7B",
    "qwen3-0.6b": "Qwen/Qwen3-0.6B",
    "qwen3-1.7b": "Qwen/Qwen3-1.7B",
    "qwen3-4b": "Qwen/Qwen3-4B",
    "qwen3-8b": "Qwen/Qwen3-8B",
    "qwen3-14b": "Qwen/Qwen3-14B",
    "qwen3-32b": "Qwen/Qwen3-32B",
    "qwen3-0.6b-base": "Qwen/Qwen3-0.6B-Base",
    "qwen3-1.7b-base": "Qwen/Qwen3-1.7B-Base",
    "qwen3-4b-base": "Qwen/Qwen3-4B-Base",
    "qwen3-8b-base": "Qwen/Qwen3-8B-Base",
    "qwen3-14b-base": "Qwen/Qwen3-14B-Base",
    "qwen3-4b-instruct-2507": "Qwen/Qwen3-4B-Instruct-2507",
    "qwen3-4b-thinking-2507": "Qwen/Qwen3-4B-Thinking-2507",
    "qwen3-30b-a3b": "Qwen/Qwen3-30B-A3B",
    "qwen3-next-80b-a3b-instruct": "Qwen/Qwen3-Next-80B-A3B-Instruct",
    "qwen3.5-4b": "Qwen/Qwen3.5-4B",
    "qwen3.5-27b": "Qwen/Qwen3.5-27B",
    "r1-distill-qwen-1.5b": "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
    "r1-distill-qwen-7b": "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B",
    "r1-distill-qwen-14b": "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B",
    "r1-distill-qwen-32b": "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B",
    "r1-distill-llama-8b": "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
    "llama3-8b": "meta-llama/Meta-Llama-3-8B",
    "llama3-8b-instruct": "meta-llama/Meta-Llama-3-8B-Instruct",
    "llama3.1-8b": "meta-llama/Llama-3.1-8B",
    "llama3.1-8b-instruct": "meta-llama/Llama-3.1-8B-Instruct",
    "llama3.1-70b": "meta-llama/Llama-3.1-70B",
    "llama3.1-70b-instruct": "meta-llama/Llama-3.1-70B-Instruct",
    "llama3.2-1b": "meta-llama/Llama-3.2-1B",
    "llama3.2-1b-instruct": "meta-llama/Llama-3.2-1B-Instruct",
    "llama3.2-3b": "meta-llama/Llama-3.2-3B",
    "llama3.2-3b-instruct": "meta-llama/Llama-3.2-3B-Instruct",
    "llama3.3-70b": "meta-llama/Llama-3.3-70B-Instruct",
    "olmo2-1b": "allenai/OLMo-2-0425-1B",
    "olmo2-1b-instruct": "allenai/OLMo-2-0425-1B-Instruct",
    "olmo2-7b": "allenai/OLMo-2-1124-7B",
    "olmo2-7b-instruct": "allenai/OLMo-2-1124-7B-Instruct",
    "olmo2-13b": "allenai/OLMo-2-1124-13B",
    "olmo2-13b-instruct": "allenai/OLMo-2-1124-13B-Instruct",
    "olmo2-32b": "allenai/OLMo-2-0325-32B",
    "olmo2-32b-instruct": "allenai/OLMo-2-0325-32B-Instruct",
    "mistral-7b": "mistralai/Mistral-7B-v0.3",
    "mistral-7b-instruct": "mistralai/Mistral-7B-Instruct-v0.3",
    "mistral-nemo-12b": "mistralai/Mistral-Nemo-Base-2407",
    "mistral-nemo-12b-instruct": "mistralai/Mistral-Nemo-Instruct-2407",
    "mixtral-8x7b": "mistralai/Mixtral-8x7B-v0.1",
    "mixtral-8x7b-instruct": "mistralai/Mixtral-8x7B-Instruct-v0.1",
    "gemma2-2b": "google/gemma-2-2b",
    "gemma2-2b-it": "google/gemma-2-2b-it",
    "gemma2-9b": "google/gemma-2-9b",
    "gemma2-9b-it": "google/gemma-2-9b-it",
    "gemma2-27b": "google/gemma-2-27b",
    "gemma2-27b-it": "google/gemma-2-27b-it",
    "gemma3-270m": "google/gemma-3-270m",
    "gemma3-270m-it": "google/gemma-3-270m-it",
    "gemma3-1b": "google/gemma-3-1b-pt",
    "gemma3-1b-it": "google/gemma-3-1b-it",
    "gemma3-4b": "google/gemma-3-4b-pt",
    "gemma3-4b-it": "google/gemma-3-4b-it",
    "gemma3-12b": "google/gemma-3-12b-pt",
    "gemma3-12b-it": "google/gemma-3-12b-it",
    "gemma3-27b": "google/gemma-3-27b-pt",
    "gemma3-27b-it": "google/gemma-3-27b-it",
    "gemma4-e2b-it": "google/gemma-4-E2B-it",
    "gemma4-e4b-it": "google/gemma-4-E4B-it",
    "phi2-2.7b": "microsoft/phi-2",
    "phi3-mini": "microsoft/Phi-3-mini-4k-instruct",
    "phi3-medium": "microsoft/Phi-3-medium-4k-instruct",
    "phi3.5-mini": "microsoft/Phi-3.5-mini-instruct",
    "phi4-14b": "microsoft/phi-4",
    "phi4-mini": "microsoft/Phi-4-mini-instruct",
    "gpt2": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "gpt2-xl": "openai-community/gpt2-xl",
    "pythia-160m": "EleutherAI/pythia-160m",
    "pythia-410m": "EleutherAI/pythia-410m",
    "pythia-1b": "EleutherAI/pythia-1b",
    "pythia-1.4b": "EleutherAI/pythia-1.4b",
    "pythia-2.8b": "EleutherAI/pythia-2.8b",
    "pythia-6.9b": "EleutherAI/pythia-6.9b",
    "tinyllama-1.1b": "TinyLlama/TinyLlama_v1.1",
    "tinyllama-1.1b-chat": "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
    "smollm2-135m": "HuggingFaceTB/SmolLM2-135M",
    "smollm2-135m-instruct": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "smollm2-360m": "HuggingFaceTB/SmolLM2-360M",
    "smollm2-360m-instruct": "HuggingFaceTB/SmolLM2-360M-Instruct",
    "smollm2-1.7b": "HuggingFaceTB/SmolLM2-1.7B",
    "smollm2-1.7b-instruct": "HuggingFaceTB/SmolLM2-1.7B-Instruct",
}

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FORMS = "Give an alias (see `bandsearch models`), a hub id such as org/name[@revision], or a directory."


def resolve(spec: ModelSpec) -> Source:
    """Where the model named in `spec` is loaded from. Looks at the disk, never at the network.

    An alias wins over a directory of the same name (write ./name for that one), a directory over a hub id.
    Raises ModelError for anything else.
    """
    name = spec.name.strip()
    if name == DEMO:
        return _demo(spec)
    base, _, suffix = name.partition("@")
    directory = Path(name).expanduser()
    if base.lower() not in ALIASES and name and directory.is_dir():
        return _local(directory, spec, name)
    if suffix and spec.revision and suffix != spec.revision:
        raise ModelError(
            f"Two revisions were given for {base}: {suffix!r} and {spec.revision!r}.",
            "Give the revision once, either behind an @ or as an option.",
        )
    hub_id = ALIASES.get(base.lower())
    if hub_id is None and _HUB_ID.fullmatch(base) and not _looks_like_a_path(name) and ".." not in base:
        hub_id = base
    if hub_id is not None and not (hub_id == base and directory.is_file()):
        return Source(
            location=hub_id,
            revision=suffix or spec.revision,
            is_local=False,
            trust_remote_code=spec.trust_remote_code,
            slug=_slug(base.rpartition("/")[2]),
        )
    raise _unknown(name, directory)


def _unknown(name: str, path: Path) -> ModelError:
    if not name:
        return ModelError("The model name is empty.", _FORMS)
    if path.is_file():
        return ModelError(
            f"{name} is a file, but a model is a directory with config.json, weights and tokenizer.",
            f"Give the directory it lies in: {path.parent}.",
        )
    if _looks_like_a_path(name):
        return ModelError(f"The model directory {name} does not exist.", _FORMS)
    close = difflib.get_close_matches(name.partition("@")[0].lower(), [*ALIASES, DEMO], n=3, cutoff=0.5)
    suggestion = f"Did you mean {' or '.join(close)}? " if close else ""
    return ModelError(f"There is no model called {name!r}.", suggestion + _FORMS)


def _looks_like_a_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.endswith("/") or "\\" in name or name.count("/") > 1


def _demo(spec: ModelSpec) -> Source:
    directory = Path(bandsearch.__file__).parent / "demo" / "model"
    if not directory.is_dir():
        raise ModelError(f"The demo model is missing from this installation ({directory}).", "Reinstall bandsearch.")
    return _local(directory, spec, DEMO)


def _local(directory: Path, spec: ModelSpec, name: str) -> Source:
    if spec.revision:
        raise ModelError(
            f"A revision ({spec.revision}) was given for the local directory {name}.",
            "Revisions exist on the hub only; leave it out.",
        )
    if not (directory / "config.json").is_file():
        if (directory / "adapter_config.json").is_file():
            raise ModelError(
                f"{name} holds an adapter, not a model.",
                "Give the base model it was trained on (base_model_name_or_path in its adapter_config.json).",
            )
        raise ModelError(
            f"The directory {name} has no config.json, so it is not a transformers model.",
            "Give the directory that `save_pretrained` or `hf download` wrote.",
        )
    return Source(
        location=str(directory.resolve()),
        is_local=True,
        trust_remote_code=spec.trust_remote_code,
        slug=DEMO if name == DEMO else _slug(directory.resolve().name),
    )


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.") or "model"
