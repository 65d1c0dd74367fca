"""Which rows train, validate and test: decided by what a row says, not by where it stands.

A row is known by its key, a hash of its content; functions here take and give keys in orders of their own, so that the
order of rows changes nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bandsearch.data.shapes import Example

# Validation and test get a tenth each: at least a row, and never so many that evaluation outweighs training.
SHARE = 0.1
LARGEST = 2000


@dataclass(frozen=True)
class Distinct:
    """Examples by key. `duplicates` were left out because an equal one is here, `leaked` because one is elsewhere."""

    examples: Mapping[str, Example]
    duplicates: int = 0
    leaked: int = 0


def content_key(example: Example) -> str:
    """Equal for examples that differ in white space and case alone."""
    return _digest([" ".join(part.split()).casefold() for part in _said(example)])


def exact_key(example: Example) -> str:
    """Equal for equal examples, wherever they stand."""
    return _digest([*_said(example), example.given, repr(example.tools)])


def _said(example: Example) -> list[str]:
    if not example.messages:
        return [example.text]
    return [
        part
        for message in example.messages
        for part in (message.role, message.content, repr(dict(message.extras)) if message.extras else "")
    ]


def _digest(content: object) -> str:
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()


def without_duplicates(examples: Sequence[Example], *others: Distinct) -> Distinct:
    """One example of each content, none whose content is among the `others`."""
    kept: dict[str, Example] = {}
    leaked = 0
    for example in examples:
        key = content_key(example)
        if any(key in other.examples for other in others):
            leaked += 1
        elif key not in kept or exact_key(example) < exact_key(kept[key]):
            kept[key] = example
    return Distinct(kept, duplicates=len(examples) - leaked - len(kept), leaked=leaked)


def sampled(keys: Iterable[str], count: int, seed: int) -> list[str]:
    """`count` of the keys, or all where there are fewer."""
    return ranked(keys, f"sample {seed}")[:count]


def divided(keys: Iterable[str]) -> tuple[list[str], list[str], list[str]]:
    """(train, validation, test)."""
    rest, test = held_out(keys, "test", SHARE)
    train, validation = held_out(rest, "validation", SHARE / (1 - SHARE))
    return train, validation, test


def held_out(keys: Iterable[str], split: str, share: float = SHARE) -> tuple[list[str], list[str]]:
    """(rest, a share of the keys): those whose hash under the name of the split is lowest."""
    order = ranked(keys, split)
    count = min(max(1, round(share * len(order))), LARGEST)
    return order[count:], order[:count]


def ranked(keys: Iterable[str], salt: str) -> list[str]:
    """The keys in an order that is random for every `salt`."""
    return sorted(keys, key=lambda key: _salted(key, salt))


def _salted(key: str, salt: str) -> str:
    return hashlib.blake2b(key.encode(), digest_size=16, key=salt.encode()).hexdigest()
