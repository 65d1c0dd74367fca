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
    "gemma4",
    "gemma4_text",
    "qwen3_5",
    "qwen3_5_text",
    "qwen3_5_moe",
    "qwen3_5_moe_text",
    "qwen3_next",
    "qwen2_5_vl",
    "qwen3_vl",
    "mistral3",
    "ministral3",
    "olmo_hybrid",
    "lfm2",
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

    from bandsearch.models.config import auto_class

    tokenizer = _tokenizer(family)
    tokenizer.save_pretrained(directory)
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    config = _config(family, width)
    model = auto_class(config).from_config(config, dtype=torch.float32)
    # The default 0.02 leaves a model this narrow almost linear; larger weights make every layer matter.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "embed" not in name and "wte" not in name:
                parameter.normal_(0.0, 0.85 / width**0.5)
            # Keys are normalised behind it: of very small ones only rounding would be left.
            if parameter.ndim == 3 and "conv" in name:
                parameter.normal_(0.0, 0.25)
    torch.set_rng_state(state)
    model.save_pretrained(directory)


def _config(family: str, width: int) -> Any:
    from transformers import AutoConfig

    from bandsearch.models.config import MULTIMODAL

    ids = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    sizes = {"num_hidden_layers": LAYERS, "hidden_size": width, "num_attention_heads": 4}
    modern = {**sizes, "intermediate_size": width * 3 // 2, "num_key_value_heads": 2, "max_position_embeddings": 256}
    gemma = {**modern, "head_dim": width // 4, "query_pre_attn_scalar": width // 4, "sliding_window": 16}
    experts = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": width * 3 // 2}
    delta = {
        **modern,
        "head_dim": width // 4,
        "linear_key_head_dim": width // 4,
        "linear_value_head_dim": width // 4,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "layer_types": ["linear_attention", "full_attention"] * 2,
    }
    small_experts = {
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "moe_intermediate_size": width // 2,
        "shared_expert_intermediate_size": width // 2,
    }
    # The last layer takes the keys and values of the one below it, and the heads of the second differ in size.
    gemma4 = {
        **modern,
        "head_dim": width // 4,
        "global_head_dim": width // 2,
        "sliding_window": 16,
        "use_double_wide_mlp": True,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": VOCABULARY,
        "num_kv_shared_layers": 1,
        "layer_types": ["full_attention", "sliding_attention", "full_attention", "full_attention"],
    }
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    qwen_vl = {**modern, "head_dim": width // 4, "rope_parameters": rope}
    by_family: dict[str, dict[str, Any]] = {
        "qwen2": {**modern, "tie_word_embeddings": True},
        "qwen3": {**modern, "head_dim": width // 4},
        "llama": modern,
        "mistral": {**modern, "sliding_window": None},
        "gemma": {**modern, "head_dim": width // 4},
        "gemma2": gemma,
        "gemma3": gemma,
        "gemma3_text": gemma,
        "gemma4": gemma4,
        "gemma4_text": gemma4,
        "qwen3_5": delta,
        "qwen3_5_text": delta,
        "qwen3_5_moe": delta | small_experts,
        "qwen3_5_moe_text": delta | small_experts,
        "qwen3_next": delta | small_experts,
        "qwen2_5_vl": qwen_vl,
        "qwen3_vl": qwen_vl,
        "mistral3": {**modern, "model_type": "ministral3", "head_dim": width // 4},
        "ministral3": {**modern, "head_dim": width // 4},
        "olmo_hybrid": {**delta, "layer_types": ["full_attention", "linear_attention"] * 2},
        "lfm2": {**modern, "layer_types": ["conv", "full_attention"] * 2},
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
    chosen = by_family[family] | ids
    if family in MULTIMODAL:
        return AutoConfig.for_model(family, text_config=chosen, vision_config=_VISION, **ids)
    return AutoConfig.for_model(family, **chosen)


# By every name that the sizes of a vision tower have.
_VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "depth": 1,
    "num_heads": 2,
    "head_dim": 8,
    "image_size": 32,
    "patch_size": 16,
    "out_hidden_size": WIDTH,
    "fullatt_block_indexes": [0],
    "deepstack_visual_indexes": [],
}


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
