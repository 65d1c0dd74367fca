"""Which rows train, validate and test: decided by what a row says, not by where it stands.

A row is known by its key. Rows of one group, by default those that ask the same, stand in one split: otherwise the
second answer to a training question would be a test. Functions here take and give keys in orders of their own: the
order of rows changes nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from bandsearch.data.messages import Message
from bandsearch.data.shapes import Example

# Validation and test get a tenth each: at least a row, and never so many that evaluation outweighs training.
SHARE = 0.1
LARGEST = 2000

_DIGEST = 16


class Grouping(StrEnum):
    """What rows of one group have in common: what is asked, whatever the system message (a date, a name, one of several
    styles); what is asked and the system message; or all that they say."""

    QUESTION = "question"
    PROMPT = "prompt"
    CONTENT = "content"


class Key(NamedTuple):
    """Hashes in hex: of what a row says but for white space and case, of exactly what it says, and of what rows that
    belong into one split have in common."""

    content: str
    exact: str
    group: str

    @property
    def group_number(self) -> int:
        """The group as a number of 60 bits."""
        return int(self.group[:15], 16)


@dataclass(frozen=True)
class Distinct:
    """Examples by key. `duplicates` were left out because an equal one is here, `leaked` because one of their group is
    elsewhere."""

    examples: Mapping[Key, Example]
    duplicates: int = 0
    leaked: int = 0


def key_of(example: Example, grouping: Grouping = Grouping.QUESTION) -> Key:
    """What is asked are the messages before the first learned answer; plain text is grouped by all that it says."""
    if not example.messages:
        content = _digest(_folded([example.text]))
        return Key(content, _digest([example.text, 0, "()"]), content)
    said = _said(example.messages)
    content = _digest(_folded(said))
    exact = _digest([*said, *example.answers, repr(example.tools)])
    if grouping is Grouping.CONTENT:
        return Key(content, exact, content)
    asked = example.messages[: example.answers[0]]
    if grouping is Grouping.QUESTION:
        asked = tuple(message for message in asked if message.role != "system")
    return Key(content, exact, _digest(_folded(_said(asked))))


def _said(messages: Sequence[Message]) -> list[str]:
    return [part for m in messages for part in (m.role, m.content, repr(dict(m.extras)) if m.extras else "")]


def _folded(said: Sequence[str]) -> list[str]:
    return [" ".join(part.split()).casefold() for part in said]


def _digest(content: object) -> str:
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=_DIGEST).hexdigest()


def without_duplicates(
    examples: Sequence[Example], *others: Distinct, grouping: Grouping = Grouping.QUESTION
) -> Distinct:
    """One of equal examples, none whose group is among the `others`."""
    elsewhere = {key.group for other in others for key in other.examples}
    kept: dict[Key, Example] = {}
    leaked = 0
    for example in examples:
        key = key_of(example, grouping)
        if key.group in elsewhere:
            leaked += 1
        else:
            kept.setdefault(key, example)
    return Distinct(kept, duplicates=len(examples) - leaked - len(kept), leaked=leaked)


def sampled(keys: Iterable[Key], count: int, seed: int) -> list[Key]:
    """`count` of the keys, or all where there are fewer."""
    return ranked(keys, f"sample {seed}")[:count]


def divided(sizes: Mapping[Key, int]) -> tuple[list[Key], list[Key], list[Key]]:
    """(train, validation, test) of keys that stand for so many examples each."""
    rest, test = held_out(sizes, "test", SHARE)
    train, validation = held_out({key: sizes[key] for key in rest}, "validation", SHARE / (1 - SHARE))
    return train, validation, test


def held_out(sizes: Mapping[Key, int], split: str, share: float = SHARE) -> tuple[list[Key], list[Key]]:
    """(rest, about a share of the examples): groups in the order of a content's hash under the name of the split.

    `sizes` are how many examples a key stands for. A group of more than twice the share stays in the rest, unless there
    are no others.
    """
    order = ranked(sizes, split)
    count = min(max(1, round(share * sum(sizes.values()))), LARGEST)
    groups: dict[str, list[Key]] = {}
    for key in order:
        groups.setdefault(key.group, []).append(key)
    size = {name: sum(sizes[key] for key in group) for name, group in groups.items()}
    small = [name for name in groups if size[name] <= 2 * count]
    held: list[Key] = []
    for name in small or sorted(groups, key=size.__getitem__):
        if count <= 0:
            break
        held += groups[name]
        count -= size[name]
    out = set(held)
    return [key for key in order if key not in out], held


def ranked(keys: Iterable[Key], salt: str) -> list[Key]:
    """The keys in an order that is random for every `salt`, equal contents side by side."""
    return sorted(keys, key=lambda key: (_salted(key.content, salt), key))


def _salted(content: str, salt: str) -> str:
    return hashlib.blake2b(content.encode(), digest_size=_DIGEST, key=salt.encode()).hexdigest()
