"""Scales, escaped elements and correlations."""

import itertools
import math
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plausible import plausible_facts

from bandsearch.run.charts import layers_of, pareto
from bandsearch.run.signals import signals
from bandsearch.run.svg import Scale, element, number
from bandsearch.run.words import charged, markdown_text
from bandsearch.values.band import Band
from bandsearch.values.budget import Unit
from bandsearch.values.trial import Point

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


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=9), st.integers(2, 8))
def test_linear_ticks_are_evenly_spaced(values: list[float], wanted: int) -> None:
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


def test_signals_are_spearmans_correlation() -> None:
    facts = plausible_facts()
    finalists = facts.winner.finalists
    trials = []
    for place, finalist in enumerate(finalists):
        loss = finalist.loss if place else 9.0
        points = (Point(steps=30, loss=loss, seconds=1.0),)
        trials.append(facts.trials[0].model_copy(update={"candidate": finalist.candidate, "points": points}))
    found = {s.predictor: s for s in signals(trials, facts.winner, facts.profile, (30, 90))}
    n = len(finalists)
    proxy_rank = _ranks([trial.points[0].loss for trial in trials])
    confirm_rank = _ranks([finalist.loss for finalist in finalists])
    squares = sum((a - b) ** 2 for a, b in zip(proxy_rank, confirm_rank, strict=True))
    assert found["loss after 30 steps"].pairs == n
    assert found["loss after 30 steps"].correlation == pytest.approx(1 - 6 * squares / (n * (n * n - 1)))
    assert "loss after 90 steps" not in found
    assert "width of the band alone" in found


def _ranks(values: list[float]) -> list[int]:
    order = sorted(values)
    return [order.index(value) for value in values]
