"""A page of strict YAML: its readers note every mistake with its line and go on, so that one look finds all."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from bandsearch.spaces.folder import ADVICE
from bandsearch.values.errors import SpaceError

AUTO = "auto"

# What people write who come from PEFT or from another tuner.
_MEANT = {
    "r": "ranks",
    "lora_alpha": "alpha",
    "lora_r": "ranks",
    "lr": "learning_rate",
    "modules": "targets",
    "target_modules": "targets",
    "layers": "bands",
    "init_lora_weights": "inits",
    "use_rslora": "methods",
    "base_model": "model",
    "datasets": "dataset",
    "sequence_len": "max-length",
    "max_seq_length": "max-length",
    "num_epochs": "epochs",
    "num_train_epochs": "epochs",
    "micro_batch_size": "batch-size",
    "per_device_train_batch_size": "batch-size",
}


@dataclass(frozen=True, order=True)
class Mistake:
    line: int
    column: int
    place: str
    message: str

    def __str__(self) -> str:
        return f"line {self.line}, column {self.column}: {f'{self.place}: ' if self.place else ''}{self.message}"


@dataclass
class Page:
    """The file being read; its readers note what is wrong and go on, so that one look finds everything."""

    mistakes: list[Mistake] = field(default_factory=list)

    def note(self, node: yaml.Node, place: str, message: str) -> None:
        self.mistakes.append(Mistake(node.start_mark.line + 1, node.start_mark.column + 1, place, message))

    def refuse_mistakes(self, origin: str) -> None:
        """Raises SpaceError with all of them, if there are any."""
        if self.mistakes:
            count = "a mistake" if len(self.mistakes) == 1 else f"{len(self.mistakes)} mistakes"
            lines = "\n".join(f"  {mistake}" for mistake in sorted(self.mistakes))
            raise SpaceError(f"{origin} has {count}:\n{lines}", ADVICE)


# A reader returns None after noting a mistake.
Reader = Callable[[Page, yaml.Node, str], Any]


def read_page(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpaceError(f"{path} is not UTF-8 text (byte {error.start + 1}).", "Save it as UTF-8.") from error
    except OSError as error:
        raise SpaceError(f"{path} cannot be read: {error.strerror or error}.", ADVICE) from error


def compose(text: str, origin: str) -> yaml.Node:
    """The YAML tree with its line numbers, values as written: YAML's own rules read 1e-4 as text and no as false."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        problem = str(error.problem or error.context)
        if "'\\t'" in problem:
            problem = "a tab; indent with spaces"
        raise SpaceError(f"{origin}{where} is not YAML: {problem}.", ADVICE) from error
    except yaml.YAMLError as error:
        raise SpaceError(f"{origin} is not YAML: {str(error).splitlines()[0]}.", ADVICE) from error
    except RecursionError as error:
        raise SpaceError(f"{origin} is nested too deeply.", ADVICE) from error
    if node is None:
        raise SpaceError(f"{origin} is empty.", ADVICE)
    return node


def fields_of(page: Page, node: yaml.Node, place: str, readers: Mapping[str, Reader]) -> dict[str, Any]:
    """The fields of a mapping that were given and read well."""
    allowed = f"allowed here: {', '.join(readers)}"
    if not isinstance(node, yaml.MappingNode):
        page.note(node, place, f"expected `key: value` lines, found {found(node)}; {allowed}")
        return {}
    fields: dict[str, Any] = {}
    first_line: dict[str, int] = {}
    for key_node, value_node in node.value:
        key = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else ""
        if key not in readers:
            page.note(key_node, place, f"unknown key {found(key_node)}{suggest(key, tuple(readers))}; {allowed}")
            continue
        if key in first_line:
            page.note(key_node, _inside(place, key), f"given twice (first on line {first_line[key]})")
            continue
        first_line[key] = key_node.start_mark.line + 1
        fields[key] = readers[key](page, value_node, _inside(place, key))
    return {key: value for key, value in fields.items() if value is not None}


def sentence(page: Page, node: yaml.Node, place: str) -> str | None:
    if isinstance(node, yaml.ScalarNode) and node.value.strip():
        return " ".join(node.value.split())
    page.note(node, place, f"expected a sentence, found {found(node)}")
    return None


def choice(allowed: Sequence[str], refused: Mapping[str, str]) -> Reader:
    def read(page: Page, node: yaml.Node, place: str) -> str | None:
        word = (word_of(node) or "").lower()
        if word in allowed:
            return word
        if word in refused:
            page.note(node, place, f"{word} is not offered: {refused[word]}; allowed: {', '.join(allowed)}")
        else:
            suggestion = suggest(word, allowed)
            page.note(node, place, f"found {found(node)}{suggestion}; allowed: {', '.join(allowed)}")
        return None

    return read


def flag(page: Page, node: yaml.Node, place: str) -> bool | None:
    known = {"true": True, "false": False}
    word = word_of(node)
    if word is not None and word.lower() in known:
        return known[word.lower()]
    page.note(node, place, f"expected true or false, found {found(node)}")
    return None


def whole(low: int, high: int) -> Reader:
    expected = f"a whole number from {low} to {high}"

    def read(page: Page, node: yaml.Node, place: str) -> int | None:
        value = number(low, high, expected)(page, node, place)
        if value is not None and value != int(value):
            page.note(node, place, f"expected {expected}, found {found(node)}")
            return None
        return None if value is None else int(value)

    return read


def number(low: float, high: float, expected: str = "") -> Reader:
    expected = expected or f"a number from {low:g} to {high:g}"

    def read(page: Page, node: yaml.Node, place: str) -> float | None:
        try:
            value = float(word_of(node) or "")
        except ValueError:
            value = math.nan
        if low <= value <= high:
            return value
        page.note(node, place, f"expected {expected}, found {found(node)}")
        return None

    return read


def span(read_end: Reader) -> Reader:
    """[lowest, highest], or one value for both."""

    def read(page: Page, node: yaml.Node, place: str) -> tuple[Any, Any] | None:
        if not isinstance(node, yaml.SequenceNode):
            value = read_end(page, node, place)
            return None if value is None else (value, value)
        if len(node.value) != 2:
            page.note(node, place, f"expected [lowest, highest] or one value, found {found(node)}")
            return None
        low, high = (read_end(page, end, place) for end in node.value)
        if low is None or high is None:
            return None
        if AUTO not in (low, high) and low > high:
            page.note(node, place, f"the lowest, {low:g}, is above the highest, {high:g}")
            return None
        return low, high

    return read


def several(read_one: Reader) -> Reader:
    """A list of different values, or one value."""

    def read(page: Page, node: yaml.Node, place: str) -> tuple[Any, ...] | None:
        nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
        if not nodes:
            page.note(node, place, "the list is empty; name at least one")
            return None
        values: list[Any] = []
        for index, item in enumerate(nodes):
            where = f"{place}[{index}]" if isinstance(node, yaml.SequenceNode) else place
            value = read_one(page, item, where)
            if value is not None and value in values:
                page.note(item, where, f"{value} is listed twice")
            values.append(value)
        return None if None in values else tuple(values)

    return read


_PLAIN_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "timestamp", "value")}


def word_of(node: yaml.Node) -> str | None:
    """What a scalar says, as written; None for lists, mappings and values with a tag of their own."""
    if not isinstance(node, yaml.ScalarNode) or node.tag not in _PLAIN_TAGS:
        return None
    return str(node.value).strip()


def found(node: yaml.Node) -> str:
    if isinstance(node, yaml.SequenceNode):
        return f"a list of {len(node.value)}"
    if isinstance(node, yaml.MappingNode):
        return "`key: value` lines"
    text = str(node.value)
    if not text.strip():
        return "nothing"
    return repr(text if len(text) <= 40 else text[:39] + "…")


def _inside(place: str, key: str) -> str:
    return f"{place}.{key}" if place else key


def suggest(name: str, known: Collection[str]) -> str:
    close = [_MEANT[name]] if _MEANT.get(name) in known else difflib.get_close_matches(name, known, 1, 0.6)
    return f" (did you mean {close[0]}?)" if close else ""
