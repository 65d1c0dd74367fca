"""Tokenizers of the small models, and data files written in one line."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase


@pytest.fixture(scope="session")
def tokenizer_of(tiny_model: Callable[[str], Path]) -> Callable[[str], PreTrainedTokenizerBase]:
    """A fresh tokenizer of a family on every call, so that a test may change its template."""

    def load(family: str) -> PreTrainedTokenizerBase:
        return AutoTokenizer.from_pretrained(tiny_model(family))

    return load


@pytest.fixture
def plain(tokenizer_of: Callable[[str], PreTrainedTokenizerBase]) -> PreTrainedTokenizerBase:
    """A tokenizer without a chat template."""
    return tokenizer_of("gpt2")


@pytest.fixture
def chat(tokenizer_of: Callable[[str], PreTrainedTokenizerBase]) -> PreTrainedTokenizerBase:
    """A tokenizer with a chat template."""
    return tokenizer_of("llama")


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[[Sequence[Any]], str]:
    """Writes rows to `my.jsonl` and gives its path."""

    def write(rows: Sequence[Any], name: str = "my.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write
