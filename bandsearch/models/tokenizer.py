"""Loading tokenizers, without what it takes to load a model."""

from __future__ import annotations

from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from bandsearch.models.config import load_config
from bandsearch.models.failures import explained
from bandsearch.values.errors import ModelError
from bandsearch.values.source import Source


def load_tokenizer(source: Source) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with a padding token inside the vocabulary. Raises ModelError."""
    config = load_config(source)
    with explained(source, "tokenizer"):
        tokenizer = _loaded(source)
    vocabulary = config.get_text_config().vocab_size
    ids = tokenizer("The answer is 42.", add_special_tokens=False)["input_ids"]
    if not ids:
        raise ModelError(
            f"The tokenizer of {source} ({type(tokenizer).__name__}) encodes text to nothing.",
            "Check that its tokenizer files are there and were saved by that class.",
        )
    if max(ids) >= vocabulary:
        raise ModelError(
            f"The tokenizer of {source} writes token {max(ids)}, but the model knows only {vocabulary} tokens.",
            "Use the tokenizer that belongs to this model.",
        )
    _ensure_padding(tokenizer, vocabulary)
    return tokenizer


def _loaded(source: Source) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(
        source.location, revision=source.revision, trust_remote_code=source.trust_remote_code
    )
    if type(tokenizer).__name__ != "MistralCommonBackend":
        return tokenizer
    # Where mistral-common is installed, transformers reads tekken.json with it, into a class that knows neither added
    # tokens nor chat templates. How to ask for the other one differs between its releases.
    return PreTrainedTokenizerFast.from_pretrained(source.location, revision=source.revision)


def _ensure_padding(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> None:
    # Padded positions are masked out, so any token of the vocabulary serves; the end of text is the usual one.
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id < vocabulary:
        return
    usable = [
        token
        for token, index in (
            (tokenizer.eos_token, tokenizer.eos_token_id),
            (tokenizer.bos_token, tokenizer.bos_token_id),
            (tokenizer.unk_token, tokenizer.unk_token_id),
        )
        if index is not None and index < vocabulary
    ]
    tokenizer.pad_token = usable[0] if usable else tokenizer.convert_ids_to_tokens(0)
