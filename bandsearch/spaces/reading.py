"""Reading a search space: its keys, what each may say, and what is refused and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from pydantic import ValidationError

from bandsearch.spaces.page import (
    AUTO,
    Page,
    Reader,
    choice,
    compose,
    fields_of,
    flag,
    found,
    number,
    sentence,
    several,
    span,
    whole,
    word_of,
)
from bandsearch.values.candidate import Init, Method
from bandsearch.values.space import ALPHA_RULE, LARGEST_RANK, TARGETS, BandSpace, RateSpace, SearchSpace

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


def parse_space(text: str, name: str, origin: str) -> SearchSpace:
    """The space that YAML `text` describes. `origin` names the file in errors. Raises SpaceError."""
    page, root = Page(), compose(text, origin)
    readers: Mapping[str, Reader] = {
        "description": sentence,
        "bands": _bands,
        "ranks": several(whole(1, LARGEST_RANK)),
        "alpha": _alpha,
        "targets": several(_target),
        "learning_rate": _rates,
        "methods": several(choice(tuple(Method), _REFUSED_METHODS)),
        "inits": several(choice(tuple(Init), _REFUSED_INITS)),
    }
    fields = fields_of(page, root, "", readers)
    if "ranks" in fields and Init.ORTHOGONAL in fields.get("inits", ()):
        _refuse_odd_ranks(page, root, fields["ranks"])
    page.refuse_mistakes(origin)
    return SearchSpace(name=name, **fields)


def _refuse_odd_ranks(page: Page, root: yaml.Node, ranks: Sequence[int]) -> None:
    """As `SearchSpace` does, with the place in the file."""
    written = next(value for key, value in root.value if key.value == "ranks")
    is_list = isinstance(written, yaml.SequenceNode)
    for index, (node, rank) in enumerate(zip(written.value if is_list else [written], ranks, strict=True)):
        if rank % 2:
            place = f"ranks[{index}]" if is_list else "ranks"
            page.note(node, place, f"the initialisation orthogonal needs even ranks, found {rank}")


def _bands(page: Page, node: yaml.Node, place: str) -> BandSpace | None:
    share = span(number(0, 1))
    before = len(page.mistakes)
    readers = {"count": whole(1, 4), "split": flag, "start": share, "width": share, "snap": whole(1, 1_000)}
    fields = fields_of(page, node, place, readers)
    if len(page.mistakes) > before:
        return None
    try:
        return BandSpace(**fields)
    except ValidationError as error:
        for mistake in error.errors():
            page.note(node, place, mistake["msg"].removeprefix("Value error, "))
        return None


def _rates(page: Page, node: yaml.Node, place: str) -> RateSpace | None:
    def rate(page: Page, node: yaml.Node, place: str) -> Any:
        return AUTO if word_of(node) == AUTO else number(1e-12, 1e3, f"a rate above 0, or {AUTO}")(page, node, place)

    ends = span(rate)(page, node, place)
    if ends is None:
        return None
    low, high = (None if end == AUTO else end for end in ends)
    return RateSpace(low=low, high=high)


def _alpha(page: Page, node: yaml.Node, place: str) -> float | str | None:
    word = (word_of(node) or "").lower().replace(" ", "").replace("*", "")
    rule = ALPHA_RULE.fullmatch("1r" if word == "r" else word)
    if rule and 0 < float(rule["factor"]) <= 1e6:
        return rule[0]
    expected = "a number above 0, or a multiple of the rank such as 2r"
    value: float | None = number(1e-6, 1e6, expected)(page, node, place)
    return value


def _target(page: Page, node: yaml.Node, place: str) -> str | None:
    word = word_of(node)
    if word is not None and TARGETS.fullmatch(word.replace(" ", "")):
        return word.replace(" ", "")
    page.note(node, place, f"expected attention, mlp, all or module names as q_proj+v_proj, found {found(node)}")
    return None
