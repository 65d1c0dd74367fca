"""Small random models of many families, built on first use. Nothing here needs a network."""

from __future__ import annotations

import os
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Runs of the tests leave their records with the tests.
os.environ["BANDSEARCH_ATLAS"] = tempfile.mkdtemp(prefix="bandsearch-atlas-")

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# How long an example takes depends on what else the machine does.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

LAYERS = 4
WIDTH = 32
VOCABULARY = 384

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# Families whose tokenizer carries a chat template; the others have none, as many base models do.
FAMILIES_WITH_TEMPLATE = frozenset({"qwen2", "qwen3", "llama", "mistral"})

# By the names of the table.
FAMILIES = (
    "qwen2",
    "qwen3",
    "llama",
    "mistral",
    "gemma",
    "gemma2",
    "gemma3_text",
    "gemma3",
    "olmo",
    "olmo2",
    "olmo3",
    "stablelm",
    "phi",
    "phi3",
    "gpt2",
    "gpt_neox",
    "gptj",
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "opt",
    "falcon",
    "bloom",
)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def kept_data(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any, Any], str]:
    """`kept_data(source, spec)` is the file that keeps a data set as the model at `source` reads it."""
    from bandsearch.data.dataset import prepare
    from bandsearch.data.kept import keep
    from bandsearch.models.tokenizer import load_tokenizer

    def put(source: Any, spec: Any) -> str:
        path = tmp_path_factory.mktemp("kept") / "data.arrow"
        keep(prepare(spec, load_tokenizer(source), 0), path)
        return str(path)

    return put


@pytest.fixture(scope="session")
def all_families() -> tuple[str, ...]:
    return FAMILIES


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """Runs a test once for every family."""
    return request.param


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny_model(family)` is the directory of a random model (4 layers, width 32, fp32) with a working tokenizer."""
    built: dict[tuple[str, int], Path] = {}

    def build(family: str, width: int = WIDTH) -> Path:
        if (family, width) not in built:
            directory = tmp_path_factory.mktemp(f"tiny-{family.replace('_', '-')}")
            build_tiny_model(family, directory, width=width)
            built[family, width] = directory
        return built[family, width]

    return build


def build_tiny_model(family: str, directory: Path, seed: int = 0, width: int = WIDTH) -> None:
    """Write a random model and a tokenizer trained on a few sentences to `directory`; equal seeds, equal weights.

    Four heads, so that the size of a head is a quarter of `width`.
    """
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = _tokenizer(family)
    tokenizer.save_pretrained(directory)
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(_config(family, width), dtype=torch.float32)
    # The default 0.02 leaves a model this narrow almost linear; larger weights make every layer matter.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "embed" not in name and "wte" not in name:
                parameter.normal_(0.0, 0.85 / width**0.5)
    torch.set_rng_state(state)
    model.save_pretrained(directory)


def _config(family: str, width: int) -> Any:
    from transformers import AutoConfig

    ids = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    sizes = {"num_hidden_layers": LAYERS, "hidden_size": width, "num_attention_heads": 4}
    modern = {**sizes, "intermediate_size": width * 3 // 2, "num_key_value_heads": 2, "max_position_embeddings": 256}
    gemma = {**modern, "head_dim": width // 4, "query_pre_attn_scalar": width // 4, "sliding_window": 16}
    experts = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": width * 3 // 2}
    eyes = {**sizes, "intermediate_size": width, "num_hidden_layers": 1, "image_size": 16, "patch_size": 8}
    by_family: dict[str, dict[str, Any]] = {
        "qwen2": {**modern, "tie_word_embeddings": True},
        "qwen3": {**modern, "head_dim": width // 4},
        "llama": modern,
        "mistral": {**modern, "sliding_window": None},
        "gemma": {**modern, "head_dim": width // 4},
        "gemma2": gemma,
        "gemma3_text": gemma,
        "gemma3": {"text_config": {**gemma, **ids}, "vision_config": eyes, "mm_tokens_per_image": 4},
        "olmo": modern,
        "olmo2": modern,
        "olmo3": {**modern, "sliding_window": 16},
        "stablelm": modern,
        "phi": modern,
        "phi3": modern,
        "gpt2": {"n_embd": width, "n_layer": LAYERS, "n_head": 4, "n_positions": 256},
        "gpt_neox": {**sizes, "intermediate_size": width * 3 // 2, "max_position_embeddings": 256},
        "gptj": {"n_embd": width, "n_layer": LAYERS, "n_head": 4, "n_positions": 256, "rotary_dim": width // 8},
        "qwen2_moe": {**modern, **experts, "shared_expert_intermediate_size": width},
        "qwen3_moe": {**modern, **experts, "head_dim": width // 4},
        "mixtral": {**modern, "num_local_experts": 2, "num_experts_per_tok": 1},
        "opt": {**sizes, "ffn_dim": width * 3 // 2, "max_position_embeddings": 256, "word_embed_proj_dim": width},
        "falcon": {**sizes, "new_decoder_architecture": True, "num_kv_heads": 2},
        "bloom": {"hidden_size": width, "n_layer": LAYERS, "n_head": 4},
    }
    return AutoConfig.for_model(family, **(by_family[family] | ids))


def _tokenizer(family: str) -> Any:
    """Byte-level BPE of at most 384 tokens, in a class that plain AutoTokenizer loads back for this model type."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator(_SENTENCES, trainer)
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    if family in ("qwen2", "qwen3"):
        import json

        model = json.loads(backend.to_str())["model"]
        tokenizer: Any = Qwen2Tokenizer(
            vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]], unk_token=None, **names
        )
    else:
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    if family in FAMILIES_WITH_TEMPLATE:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


_SENTENCES = [
    "Question: what is the answer to the question about the number of apples?\nAnswer: the answer is 42.",
    "The user asks the assistant for help and the assistant answers with a short sentence.",
    "Compute 12 + 30 = 42, then 42 - 7 = 35 and so on.",
    "<|im_start|>user\nHello there<|im_end|>\n<|im_start|>assistant\nGood morning<|im_end|>\n",
    "A small model learns a small task in a small number of steps.",
] * 4
