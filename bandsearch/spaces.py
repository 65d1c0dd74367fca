"""Search spaces from YAML files: found by name or path, read strictly, all mistakes reported together."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from bandsearch.values.candidate import Init, Method
from bandsearch.values.errors import SpaceError
from bandsearch.values.space import ALPHA_RULE, LARGEST_RANK, TARGETS, BandSpace, RateSpace, SearchSpace

AUTO = "auto"
_SUFFIXES = (".yaml", ".yml")

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
}
_UNSERVED = ("AdaLoRA", "IA3", "LoHa", "LoKr", "VeRA", "OFT", "BOFT")
_REFUSED_METHODS = {method.lower(): f"vLLM refuses {method} adapters" for method in _UNSERVED} | {
    "dora": "vLLM refuses DoRA adapters, and converting them to LoRA changes what they compute",
    "qlora": "it is plain lora on a base in 4 bits, so write lora here and give the run --dtype nf4",
}
_CHANGES_THE_BASE = "it changes the base weights, so vLLM refuses such adapters"
_REFUSED_INITS = {"pissa": _CHANGES_THE_BASE, "olora": _CHANGES_THE_BASE, "loftq": _CHANGES_THE_BASE} | {
    "corda": _CHANGES_THE_BASE,
    "eva": "it needs a pass over the data for every candidate",
    "lora_ga": "it needs gradients of the data for every candidate",
}


def _folder() -> Path:
    """Beside this file in an installed package, beside the package in a checkout."""
    here = Path(__file__).resolve().parent
    return next(path for path in (here / "search_spaces", here.parent / "search_spaces") if path.is_dir())


_ADVICE = f"Every key and value is explained at the top of the space `default`, {_folder() / 'default.yaml'}."


def space_names() -> tuple[str, ...]:
    """The spaces that come with bandsearch: `default` first, then by name."""
    names = sorted(path.stem for path in _folder().glob("*.yaml"))
    return tuple(sorted(names, key=lambda name: name != "default"))


def load_space(name_or_path: str | Path) -> SearchSpace:
    """The space of that name, or of that YAML file. Raises SpaceError with every mistake of the file."""
    path = _find(name_or_path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpaceError(f"{path} is not UTF-8 text (byte {error.start + 1}).", "Save it as UTF-8.") from error
    except OSError as error:
        raise SpaceError(f"{path} cannot be read: {error.strerror or error}.", _ADVICE) from error
    return parse_space(text, path.stem, str(path))


def parse_space(text: str, name: str, origin: str) -> SearchSpace:
    """The space that YAML `text` describes. `origin` names the file in errors. Raises SpaceError."""
    page = _Page()
    space = _read_space(page, _compose(text, origin), name)
    if page.mistakes or space is None:
        mistakes = sorted(page.mistakes)
        count = "a mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
        lines = "\n".join(f"  {mistake}" for mistake in mistakes)
        raise SpaceError(f"{origin} has {count}:\n{lines}", _ADVICE)
    return space


def _find(name_or_path: str | Path) -> Path:
    name, names = str(name_or_path), space_names()
    if name in names:
        return _folder() / f"{name}.yaml"
    path = Path(name_or_path)
    if path.is_file():
        return path
    choices = f"Choose {', '.join(names)}, or give the path of a YAML file."
    if path.suffix in _SUFFIXES or len(path.parts) > 1:
        raise SpaceError(f"There is no search-space file {name}.", choices)
    raise SpaceError(f"There is no search space {name!r}{_suggest(name, names)}.", choices)


@dataclass(frozen=True, order=True)
class Mistake:
    line: int
    column: int
    place: str
    message: str

    def __str__(self) -> str:
        return f"line {self.line}, column {self.column}: {f'{self.place}: ' if self.place else ''}{self.message}"


@dataclass
class _Page:
    """The file being read; its readers note what is wrong and go on, so that one look finds everything."""

    mistakes: list[Mistake] = field(default_factory=list)

    def note(self, node: yaml.Node, place: str, message: str) -> None:
        self.mistakes.append(Mistake(node.start_mark.line + 1, node.start_mark.column + 1, place, message))


# A reader returns None after noting a mistake.
_Reader = Callable[[_Page, yaml.Node, str], Any]


def _compose(text: str, origin: str) -> yaml.Node:
    """The YAML tree with its line numbers, values as written: YAML's own rules read 1e-4 as text and no as false."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        problem = str(error.problem or error.context)
        if "'\\t'" in problem:
            problem = "a tab; indent with spaces"
        raise SpaceError(f"{origin}{where} is not YAML: {problem}.", _ADVICE) from error
    except yaml.YAMLError as error:
        raise SpaceError(f"{origin} is not YAML: {str(error).splitlines()[0]}.", _ADVICE) from error
    except RecursionError as error:
        raise SpaceError(f"{origin} is nested too deeply for a search space.", _ADVICE) from error
    if node is None:
        raise SpaceError(f"{origin} is empty.", _ADVICE)
    return node


def _read_space(page: _Page, root: yaml.Node, name: str) -> SearchSpace | None:
    readers: Mapping[str, _Reader] = {
        "description": _text,
        "bands": _bands,
        "ranks": _several(_whole(1, LARGEST_RANK)),
        "alpha": _alpha,
        "targets": _several(_target),
        "learning_rate": _rates,
        "methods": _several(_choice(tuple(Method), _REFUSED_METHODS)),
        "inits": _several(_choice(tuple(Init), _REFUSED_INITS)),
    }
    fields = _fields(page, root, "", readers)
    if "ranks" in fields and Init.ORTHOGONAL in fields.get("inits", ()):
        _refuse_odd_ranks(page, root, fields["ranks"])
    return None if page.mistakes else SearchSpace(name=name, **fields)


def _refuse_odd_ranks(page: _Page, root: yaml.Node, ranks: Sequence[int]) -> None:
    """Orthogonal initialisation shares the rows of a rotation out over both factors."""
    written = next(value for key, value in root.value if key.value == "ranks")
    several = isinstance(written, yaml.SequenceNode)
    for index, (node, rank) in enumerate(zip(written.value if several else [written], ranks, strict=True)):
        if rank % 2:
            place = f"ranks[{index}]" if several else "ranks"
            page.note(node, place, f"the initialisation orthogonal needs even ranks, found {rank}")


def _fields(page: _Page, node: yaml.Node, place: str, readers: Mapping[str, _Reader]) -> dict[str, Any]:
    """The fields of a mapping that were given and read well."""
    allowed = f"allowed here: {', '.join(readers)}"
    if not isinstance(node, yaml.MappingNode):
        page.note(node, place, f"expected `key: value` lines, found {_found(node)}; {allowed}")
        return {}
    fields: dict[str, Any] = {}
    first_line: dict[str, int] = {}
    for key_node, value_node in node.value:
        key = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else ""
        if key not in readers:
            page.note(key_node, place, f"unknown key {_found(key_node)}{_suggest(key, tuple(readers))}; {allowed}")
            continue
        if key in first_line:
            page.note(key_node, _inside(place, key), f"given twice (first on line {first_line[key]})")
            continue
        first_line[key] = key_node.start_mark.line + 1
        fields[key] = readers[key](page, value_node, _inside(place, key))
    return {key: value for key, value in fields.items() if value is not None}


def _bands(page: _Page, node: yaml.Node, place: str) -> BandSpace | None:
    share = _span(_number(0, 1))
    before = len(page.mistakes)
    readers = {"count": _whole(1, 4), "split": _flag, "start": share, "width": share, "snap": _whole(1, 1_000)}
    fields = _fields(page, node, place, readers)
    if len(page.mistakes) > before:
        return None
    try:
        return BandSpace(**fields)
    except ValidationError as error:
        for mistake in error.errors():
            page.note(node, place, mistake["msg"].removeprefix("Value error, "))
        return None


def _rates(page: _Page, node: yaml.Node, place: str) -> RateSpace | None:
    def rate(page: _Page, node: yaml.Node, place: str) -> Any:
        return AUTO if _word(node) == AUTO else _number(1e-12, 1e3, f"a rate above 0, or {AUTO}")(page, node, place)

    span = _span(rate)(page, node, place)
    if span is None:
        return None
    low, high = (None if end == AUTO else end for end in span)
    return RateSpace(low=low, high=high)


def _alpha(page: _Page, node: yaml.Node, place: str) -> float | str | None:
    word = (_word(node) or "").lower().replace(" ", "").replace("*", "")
    rule = ALPHA_RULE.fullmatch("1r" if word == "r" else word)
    if rule and 0 < float(rule["factor"]) <= 1e6:
        return rule[0]
    expected = "a number above 0, or a multiple of the rank such as 2r"
    value: float | None = _number(1e-6, 1e6, expected)(page, node, place)
    return value


def _target(page: _Page, node: yaml.Node, place: str) -> str | None:
    word = _word(node)
    if word is not None and TARGETS.fullmatch(word.replace(" ", "")):
        return word.replace(" ", "")
    page.note(node, place, f"expected attention, mlp, all or module names as q_proj+v_proj, found {_found(node)}")
    return None


def _text(page: _Page, node: yaml.Node, place: str) -> str | None:
    if isinstance(node, yaml.ScalarNode) and node.value.strip():
        return " ".join(node.value.split())
    page.note(node, place, f"expected a sentence, found {_found(node)}")
    return None


def _choice(allowed: Sequence[str], refused: Mapping[str, str]) -> _Reader:
    def read(page: _Page, node: yaml.Node, place: str) -> str | None:
        word = (_word(node) or "").lower()
        if word in allowed:
            return word
        if word in refused:
            page.note(node, place, f"{word} is not offered: {refused[word]}; allowed: {', '.join(allowed)}")
        else:
            suggestion = _suggest(word, allowed)
            page.note(node, place, f"found {_found(node)}{suggestion}; allowed: {', '.join(allowed)}")
        return None

    return read


def _flag(page: _Page, node: yaml.Node, place: str) -> bool | None:
    known = {"true": True, "false": False}
    word = _word(node)
    if word is not None and word.lower() in known:
        return known[word.lower()]
    page.note(node, place, f"expected true or false, found {_found(node)}")
    return None


def _whole(low: int, high: int) -> _Reader:
    expected = f"a whole number from {low} to {high}"

    def read(page: _Page, node: yaml.Node, place: str) -> int | None:
        value = _number(low, high, expected)(page, node, place)
        if value is not None and value != int(value):
            page.note(node, place, f"expected {expected}, found {_found(node)}")
            return None
        return None if value is None else int(value)

    return read


def _number(low: float, high: float, expected: str = "") -> _Reader:
    expected = expected or f"a number from {low:g} to {high:g}"

    def read(page: _Page, node: yaml.Node, place: str) -> float | None:
        try:
            value = float(_word(node) or "")
        except ValueError:
            value = math.nan
        if low <= value <= high:
            return value
        page.note(node, place, f"expected {expected}, found {_found(node)}")
        return None

    return read


def _span(read_end: _Reader) -> _Reader:
    """[lowest, highest], or one value for both."""

    def read(page: _Page, node: yaml.Node, place: str) -> tuple[Any, Any] | None:
        if not isinstance(node, yaml.SequenceNode):
            value = read_end(page, node, place)
            return None if value is None else (value, value)
        if len(node.value) != 2:
            page.note(node, place, f"expected [lowest, highest] or one value, found {_found(node)}")
            return None
        low, high = (read_end(page, end, place) for end in node.value)
        if low is None or high is None:
            return None
        if AUTO not in (low, high) and low > high:
            page.note(node, place, f"the lowest, {low:g}, is above the highest, {high:g}")
            return None
        return low, high

    return read


def _several(read_one: _Reader) -> _Reader:
    """A list of different values, or one value."""

    def read(page: _Page, node: yaml.Node, place: str) -> tuple[Any, ...] | None:
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


def _word(node: yaml.Node) -> str | None:
    """What a scalar says, as written; None for lists, mappings and values with a tag of their own."""
    if not isinstance(node, yaml.ScalarNode) or node.tag not in _PLAIN_TAGS:
        return None
    return str(node.value).strip()


def _found(node: yaml.Node) -> str:
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


def _suggest(name: str, known: Collection[str]) -> str:
    close = [_MEANT[name]] if _MEANT.get(name) in known else difflib.get_close_matches(name, known, 1, 0.6)
    return f" (did you mean {close[0]}?)" if close else ""
