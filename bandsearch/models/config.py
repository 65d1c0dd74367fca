"""Reading a model's configuration, and refusing what is no decoder."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from bandsearch.models.failures import explained
from bandsearch.values.errors import ModelError
from bandsearch.values.source import Source

# Models that take images and the like too, and whose text part is a decoder of the table of families.
MULTIMODAL = frozenset({"gemma3", "gemma4", "mistral3", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "qwen3_5_moe"})


def auto_class(config: Any) -> Any:
    """What builds the model of a configuration, whole even where only its text part is used: servers build all of it,
    and know an adapter's modules by the names that they have there."""
    return AutoModelForImageTextToText if config.model_type in MULTIMODAL else AutoModelForCausalLM


def load_config(source: Source) -> Any:
    """The transformers configuration of a decoder. Raises ModelError for anything that is not one."""
    with explained(source, "configuration"):
        config = AutoConfig.from_pretrained(
            source.location, revision=source.revision, trust_remote_code=source.trust_remote_code
        )
    kind = config.model_type
    architecture = (config.architectures or [kind])[0]
    has_code = source.trust_remote_code and "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if config.is_encoder_decoder:
        raise ModelError(
            f"{source} is an encoder-decoder ({architecture}).",
            "Bands are searched in decoder-only language models; use one of those.",
        )
    # Encoders such as BERT are in transformers' causal table too, because they can be turned into decoders.
    is_decoder = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if not is_decoder and not has_code and kind not in MULTIMODAL:
        if kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
            raise ModelError(
                f"{source} takes images too ({architecture}), and where the text part of a {kind!r} model lies is not "
                "known.",
                f"Use a text-only model of its family, or one of {', '.join(sorted(MULTIMODAL))}.",
            )
        raise ModelError(
            f"{source} is a {kind!r} model ({architecture}), not a causal language model.",
            "Use a decoder-only language model, see `bandsearch models`.",
        )
    quantization = getattr(config, "quantization_config", None)
    if quantization is not None:
        method = quantization.get("quant_method", "method unknown")
        raise ModelError(
            f"{source} is a quantised checkpoint ({method}), and adapters are trained on plain weights.",
            "Give its unquantised variant, often called BF16; --dtype nf4 loads that in 4 bits where it is too large.",
        )
    return config


def context_length(config: Any) -> int | None:
    """How many tokens the model reads; None where its configuration does not say."""
    length: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    return length
