"""Search-space files: what comes with bandsearch loads, and every mistake is named with its place."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from bandsearch.spaces import load_space, parse_space, space_names
from bandsearch.values.candidate import Init, Method
from bandsearch.values.errors import SpaceError
from bandsearch.values.space import BandSpace, RateSpace, SearchSpace


def parse(text: str) -> SearchSpace:
    return parse_space(text, "mine", "mine.yaml")


def mistakes(text: str) -> list[str]:
    with pytest.raises(SpaceError) as caught:
        parse(text)
    return [line.strip() for line in caught.value.message.splitlines()]


@pytest.mark.parametrize("name", ["default", "mid_block", "attention_only", "wide", "quick"])
def test_what_comes_with_bandsearch_loads_and_says_what_it_is_for(name: str) -> None:
    space = load_space(name)
    assert name in space_names()
    assert space.name == name
    assert space.description


def test_the_default_file_writes_out_the_defaults() -> None:
    written = load_space("default")
    assert written == SearchSpace(name="default", description=written.description)


def test_the_default_file_explains_every_key() -> None:
    from bandsearch.spaces.folder import shipped

    header = [line for line in (shipped() / "default.yaml").read_text().splitlines() if line.startswith("#")]
    explained = {line.removeprefix("#").split()[0] for line in header if line.removeprefix("#").strip()}
    keys = set(SearchSpace.model_fields) - {"name"} | set(BandSpace.model_fields)
    assert keys <= explained


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "\ufeffdescription: no\nbands: {count: 2, start: [0.1, 0.8], width: 0.25, snap: 2}\nranks: 16\nalpha: 2r\n"
        "targets: [mlp, q_proj+v_proj]\nlearning_rate: [1e-4, 2e-3]\nmethods: [rslora, lora]\ninits: gaussian\n",
        encoding="utf-8",
    )
    assert load_space(path) == load_space(str(path))
    assert load_space(path) == SearchSpace(
        name="mine",
        description="no",
        bands=BandSpace(count=2, start=(0.1, 0.8), width=(0.25, 0.25), snap=2),
        ranks=(16,),
        alpha="2r",
        targets=("mlp", "q_proj+v_proj"),
        learning_rate=RateSpace(low=1e-4, high=2e-3),
        methods=(Method.RSLORA, Method.LORA),
        inits=(Init.GAUSSIAN,),
    )


@pytest.mark.parametrize(
    ("written", "low", "high"),
    [
        ("1e-4", 1e-4, 1e-4),
        ("auto", None, None),
        ("[auto, 1e-3]", None, 1e-3),
        ("[1e-5, auto]", 1e-5, None),
        ("[.0001, 1E-3]", 1e-4, 1e-3),
    ],
)
def test_learning_rates(written: str, low: float | None, high: float | None) -> None:
    assert parse(f"learning_rate: {written}").learning_rate == RateSpace(low=low, high=high)


@pytest.mark.parametrize(
    ("written", "alpha"), [("16", 16.0), ("2r", "2r"), ("2 * r", "2r"), ("r", "1r"), ('"0.5R"', "0.5r")]
)
def test_alpha_rules(written: str, alpha: float | str) -> None:
    assert parse(f"alpha: {written}").alpha == alpha


def test_all_mistakes_are_reported_together_in_the_order_of_the_file() -> None:
    text = (
        "bands:\n  widht: [0.1, 0.5]\n  start: [0.5, 0.1]\n  snap: 1.5\nrank: 8\nranks: [8, 8, no, 1000]\n"
        "methods: [dora, lroa]\ninits: pissa\nalpha: yes\nranks: 4\ntargets: []\nlearning_rate: [1e-4]\n"
    )
    head, *found = mistakes(text)
    assert head == f"mine.yaml has {len(found)} mistakes:"
    expected = [
        ("line 2, column 3: bands: unknown key 'widht'", "did you mean width?", "count, split, start, width, snap"),
        ("line 3, column 10: bands.start:", "0.5", "0.1"),
        ("line 4, column 9: bands.snap:", "whole number", "1.5"),
        ("line 5, column 1: unknown key 'rank'", "did you mean ranks?", "learning_rate"),
        ("line 6, column 12: ranks[1]:", "8", "twice"),
        ("line 6, column 15: ranks[2]:", "1 to 512", "'no'"),
        ("line 6, column 19: ranks[3]:", "1 to 512", "'1000'"),
        ("line 7, column 11: methods[0]:", "vLLM refuses DoRA", "lora, rslora"),
        ("line 7, column 17: methods[1]:", "did you mean lora?", "lora, rslora"),
        ("line 8, column 8: inits:", "pissa", "kaiming, gaussian, orthogonal"),
        ("line 9, column 8: alpha:", "'yes'", "2r"),
        ("line 10, column 1: ranks:", "twice", "line 6"),
        ("line 11, column 10: targets:", "empty", "at least one"),
        ("line 12, column 16: learning_rate:", "[lowest, highest]", "a list of 1"),
    ]
    assert len(found) == len(expected)
    for line, (place, *words) in zip(found, expected, strict=True):
        assert line.startswith(place)
        assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("# nothing but a comment\n", "empty"),
        ("- a\n- b", "a list of 2"),
        ("just words", "just words"),
        ("bands:\n\twidth: 1", "mine.yaml:2:1 is not YAML: a tab"),
        ("a: b: c", "mine.yaml:1:5"),
        ("ranks: [8", "mine.yaml:1"),
        ("---\nranks: 8\n---\nranks: 4\n", "mine.yaml"),
        ("alpha: \x01", "not YAML"),
        ("[" * 5000, "nested"),
        ("ranks:", "nothing"),
        ("bands:", "nothing"),
        ("bands: {count: 4, width: 0.5}", "do not fit"),
        ("bands: {start: [1.0, 1.0]}", "start"),
        ("ranks: " + "9" * 5000, "1 to 512"),
        ("ranks: .inf", "1 to 512"),
        ("alpha: nan", "alpha"),
        ("alpha: -2r", "alpha"),
        ("learning_rate: 0", "rate above 0"),
        ("ranks: !!python/object:os.system 8", "ranks"),
        ("&a [*a]", "a list"),
        ("<<: {ranks: 8}", "unknown key '<<'"),
        ("? [a]\n: 1", "unknown key a list of 1"),
        ("lr: 1e-3", "did you mean learning_rate?"),
        ("targets: all-linear", "all-linear"),
        ("name: mine", "unknown key 'name'"),
        ("inits: orthogonal\nranks: 1", "line 2, column 8: ranks: the initialisation orthogonal needs even ranks"),
        ("ranks: [8, 1.0]\ninits: [kaiming, orthogonal]", "line 1, column 12: ranks[1]: the initialisation orthogonal"),
        ("methods: qlora", "qlora is not offered: it is plain lora on a base in 4 bits, so write lora here and give"),
        ("methods: boft", "vLLM refuses BOFT adapters; allowed: lora, rslora"),
    ],
)
def test_other_mistakes(text: str, words: str) -> None:
    assert words in " ".join(mistakes(text))


def test_an_unknown_name_is_answered_with_the_closest_and_a_missing_file_as_such(tmp_path: Path) -> None:
    with pytest.raises(SpaceError, match=r"'defualt' \(did you mean default\?\).*attention_only"):
        load_space("defualt")
    with pytest.raises(SpaceError, match=r"no search-space file .*mine\.yaml"):
        load_space(tmp_path / "mine.yaml")
    (tmp_path / "latin.yaml").write_bytes("description: Größe".encode("latin-1"))
    with pytest.raises(SpaceError, match=r"latin\.yaml is not UTF-8 text \(byte 16\)"):
        load_space(tmp_path / "latin.yaml")


@pytest.mark.parametrize(
    "values",
    [
        {"alpha": "many"},
        {"alpha": 0},
        {"ranks": (0,)},
        {"ranks": (1024,)},
        {"ranks": (1, 8), "inits": ("kaiming", "orthogonal")},
        {"targets": ("q proj",)},
        {"bands": {"width": (0.5, 0.2)}},
        {"bands": {"count": 3, "width": (0.4, 0.5)}},
        {"learning_rate": {"low": 1.0, "high": 0.1}},
    ],
)
def test_an_impossible_space_cannot_be_built_in_code_either(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SearchSpace(name="x", **values)


# The machine may be busy: no limit on time.
relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

_keys = st.sampled_from(
    ["description", "bands", "ranks", "alpha", "targets", "learning_rate", "methods", "inits", "count", "width"]
)
_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["auto", "lora", "kaiming", "2r", "1e-4", "mlp", "all", "dora"]),
    st.dates(),
    st.binary(max_size=4),
)
_trees = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_keys | st.text(max_size=5), inner, max_size=5),
    max_leaves=12,
)


@relaxed
@given(_trees)
def test_any_yaml_loads_or_is_refused_in_words(tree: Any) -> None:
    _loads_or_is_refused(yaml.safe_dump(tree))


@relaxed
@given(st.text(alphabet=string.printable + "äß\u2028\x85") | st.text())
@example("bands: &a {width: *a}")
@example("? |\n  x\n: y")
@example("%YAML 9.9\n---\na: 1")
@example("a: !!binary \ud800")
def test_any_text_loads_or_is_refused_in_words(text: str) -> None:
    _loads_or_is_refused(text)


def _loads_or_is_refused(text: str) -> None:
    try:
        space = parse(text)
    except SpaceError as error:
        refusal: SpaceError | None = error
    else:
        refusal = None
    if refusal:
        assert refusal.message.startswith("mine.yaml")
        assert refusal.remedy
    else:
        assert SearchSpace.model_validate_json(space.model_dump_json()) == space
