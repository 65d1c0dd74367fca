"""Reading a model's configuration, and refusing what is no decoder."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from bandsearch.models.failures import explained
from bandsearch.values.errors import ModelError
from bandsearch.values.source import Source


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
    if not is_decoder and not has_code:
        raise ModelError(
            f"{source} is a {kind!r} model ({architecture}), not a causal language model.",
            "Use a decoder-only language model, see `bandsearch models`.",
        )
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(
            f"{source} is a quantised checkpoint.", "Use the unquantised model; adapters are trained on plain weights."
        )
    return config


def context_length(config: Any) -> int | None:
    """How many tokens the model reads; None where its configuration does not say."""
    length: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    return length
