"""Encoded examples as values that can be compared."""

from __future__ import annotations

from typing import Any

from bandsearch.data.dataset import Encoded


def plain_values(example: Encoded) -> tuple[Any, ...]:
    return (
        example.input_ids.tolist(),
        example.supervised.tolist(),
        example.prompt_length,
        example.answer,
        example.place,
        example.group,
    )
