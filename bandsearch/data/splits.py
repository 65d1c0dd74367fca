"""Which rows train, validate and test: decided by what a row says, not by where it stands.

A row is known by its key, a hash of its content that ignores white space and case, followed by a hash of what it says
exactly. The first half decides the split, so that rows that differ in spaces alone stay together; the second tells
duplicates. Functions here take and give keys in orders of their own: the order of rows changes nothing.
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

_DIGEST = 16


@dataclass(frozen=True)
class Distinct:
    """Examples by key. `duplicates` were left out because an equal one is here, `leaked` because the content is
    elsewhere."""

    examples: Mapping[str, Example]
    duplicates: int = 0
    leaked: int = 0


def key_of(example: Example) -> str:
    """Hash of the content, then hash of the exact text, in hex."""
    if example.messages:
        said = [
            part for m in example.messages for part in (m.role, m.content, repr(dict(m.extras)) if m.extras else "")
        ]
    else:
        said = [example.text]
    return _digest([" ".join(part.split()).casefold() for part in said]) + _digest(
        [*said, *(example.answers or (0,)), repr(example.tools)]
    )


def content_of(key: str) -> str:
    """The half of a key that rows share which differ in white space and case alone."""
    return key[: 2 * _DIGEST]


def _digest(content: object) -> str:
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=_DIGEST).hexdigest()


def without_duplicates(examples: Sequence[Example], *others: Distinct) -> Distinct:
    """One of equal examples, none whose content is among the `others`."""
    elsewhere = {content_of(key) for other in others for key in other.examples}
    kept: dict[str, Example] = {}
    leaked = 0
    for example in examples:
        key = key_of(example)
        if content_of(key) in elsewhere:
            leaked += 1
        else:
            kept.setdefault(key, example)
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
    """(rest, a share of the keys): those whose content's hash under the name of the split is lowest."""
    order = ranked(keys, split)
    count = min(max(1, round(share * len(order))), LARGEST)
    while count < len(order) and content_of(order[count]) == content_of(order[count - 1]):
        count += 1
    return order[count:], order[:count]


def ranked(keys: Iterable[str], salt: str) -> list[str]:
    """The keys in an order that is random for every `salt`, equal contents side by side."""
    return sorted(keys, key=lambda key: (_salted(content_of(key), salt), key))


def _salted(content: str, salt: str) -> str:
    return hashlib.blake2b(content.encode(), digest_size=_DIGEST, key=salt.encode()).hexdigest()
