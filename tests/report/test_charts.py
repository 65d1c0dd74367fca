"""Scales, escaped elements and correlations."""

import itertools
import math
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plausible import plausible_facts

from bandsearch.run.charts import pareto
from bandsearch.run.svg import Scale, element, number
from bandsearch.run.words import charged, layers_of, markdown_text
from bandsearch.search.correlation import signals
from bandsearch.values.band import Band
from bandsearch.values.budget import Unit

positive = st.floats(1e-9, 1e12)


@given(st.lists(positive, min_size=1, max_size=20), st.booleans())
def test_a_scale_holds_its_values_in_order_and_has_ticks_inside(values: list[float], logarithmic: bool) -> None:
    scale = Scale.over(values, 0, 100, logarithmic=logarithmic)
    places = [scale(value) for value in sorted(values)]
    assert places == sorted(places)
    assert all(0 <= place <= 100 for place in places)
    ticks = scale.ticks()
    assert len(ticks) <= 12
    assert ticks == sorted(ticks)
    assert all(scale.low * (1 - 1e-6) <= tick <= scale.high * (1 + 1e-6) for tick in ticks)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=9), st.integers(3, 8))
def test_linear_ticks_are_evenly_spaced(values: list[float], wanted: int) -> None:
    # A step is up to 2.5 times what was asked for: of two ticks none may lie inside. Drawings ask for four and more.
    ticks = Scale.over(values, 0, 1).ticks(wanted)
    gaps = [after - before for before, after in itertools.pairwise(ticks)]
    assert 1 <= len(ticks) <= wanted + 1
    assert all(math.isclose(gap, gaps[0], rel_tol=1e-6) for gap in gaps)


@given(st.text(st.characters(exclude_categories=("Cs", "Cc", "Cn"))))
def test_elements_keep_any_text(text: str) -> None:
    parsed = ElementTree.fromstring(str(element("text", text, data_name=text)))
    assert (parsed.text or "") == text
    assert parsed.attrib["data-name"] == text


@given(st.text())
def test_markdown_text_is_one_line_without_markup(text: str) -> None:
    written = markdown_text(text)
    assert "\n" not in written
    assert "<" not in written
    bare = written.replace("\\\\", "")
    assert all(bare[place - 1] == "\\" for place, letter in enumerate(bare) if letter in "`*_|[]#")


def test_numbers_on_axes() -> None:
    assert [number(v) for v in (0, 0.05, 12_000, 3_500_000, 1e-4, 2e9)] == ["0", "0.05", "12k", "3.5M", "1e-4", "2B"]


def test_layers_and_charges_in_words() -> None:
    assert layers_of((Band(start=4, stop=5),)) == "layer 4"
    assert layers_of((Band(start=0, stop=2), Band(start=5, stop=9))) == "layers 0–1 and 5–8"
    assert charged(7.25, Unit.WALL) == "7.2 s"
    assert charged(296.4, Unit.WALL) == "4 min 56 s"
    assert charged(7384, Unit.GPU) == "2 gpu-h 03 min 04 s"


def test_the_pareto_line_passes_under_every_point() -> None:
    points = [
        (1000, 0.9, "search", "a"),
        (2000, 0.5, "search", "b"),
        (1500, 0.95, "search", "c"),
        (4000, 0.5, "x", "d"),
    ]
    drawing = ElementTree.fromstring(str(pareto(points)))
    line = next(part for part in drawing.iter("polyline") if part.attrib["class"] == "line front")
    steps = [tuple(map(float, corner.split(","))) for corner in line.attrib["points"].split()]
    for dot in drawing.iter("circle"):
        x, y = float(dot.attrib["cx"]), float(dot.attrib["cy"])
        reached = [height for place, height in steps if place <= x + 0.1]
        # Drawing units grow downwards: the line lies at or below the point.
        assert max(reached) >= y - 0.1
    assert len(steps) == 4


def test_the_probe_is_judged_beside_width_alone() -> None:
    facts = plausible_facts()
    found = {
        signal.predictor: signal
        for signal in signals(facts.trials, facts.winner.finalists, facts.profile, facts.plan.rungs)
    }
    reached = [trial for trial in facts.trials if trial.loss_at(270) is not None]
    losses = [trial.loss_at(270) for trial in reached]
    score = facts.profile.layer_scores
    expected = {
        "width of the band alone": [-len(trial.candidate.layers) for trial in reached],
        "probe: sensitivity of the band": [-sum(score[layer] for layer in trial.candidate.layers) for trial in reached],
    }
    for predictor, values in expected.items():
        assert found[predictor].across.pairs == len(reached)
        assert found[predictor].across.correlation == pytest.approx(_pearson(_ranks(values), _ranks(losses)))
    assert found["width of the band alone"].within is None


def _ranks(values: list[float]) -> list[float]:
    """Equal values share their mean rank."""
    return [sum(other < value for other in values) + sum(other == value for other in values) / 2 for value in values]


def _pearson(left: list[float], right: list[float]) -> float:
    a, b = sum(left) / len(left), sum(right) / len(right)
    products = sum((x - a) * (y - b) for x, y in zip(left, right, strict=True))
    return products / math.sqrt(sum((x - a) ** 2 for x in left) * sum((y - b) ** 2 for y in right))
