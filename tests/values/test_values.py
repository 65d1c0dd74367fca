"""What the values promise: no invalid one exists, and what is written is what was meant."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from bandsearch.values.band import Band
from bandsearch.values.budget import Budget, Unit
from bandsearch.values.candidate import Candidate, Method
from bandsearch.values.errors import BudgetError, UsageError
from bandsearch.values.fidelity import Fidelity, Schedule
from bandsearch.values.levers import Levers
from bandsearch.values.pareto import pareto_front

CANDIDATE = Candidate(bands=(Band(start=2, stop=6),), rank=8, alpha=32, targets=("all",), learning_rate=1e-3)


@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 128))
def test_a_band_between_fractions_lies_inside_the_model(low: float, high: float, layers: int) -> None:
    band = Band.between(low, high, layers)
    assert 0 <= band.start < band.stop <= max(layers, band.start + 1) <= layers


@pytest.mark.parametrize(("layers", "expected"), [(10, (2, 8)), (32, (6, 26)), (28, (6, 22))])
def test_the_mid_block_is_20_to_80_percent(layers: int, expected: tuple[int, int]) -> None:
    band = Band.between(0.2, 0.8, layers)
    assert (band.start, band.stop) == expected


def test_an_empty_or_overlapping_band_cannot_exist() -> None:
    with pytest.raises(ValidationError, match="empty"):
        Band(start=3, stop=3)
    with pytest.raises(ValidationError, match="overlap"):
        CANDIDATE.model_copy(update={}).model_validate(
            CANDIDATE.model_dump() | {"bands": [{"start": 0, "stop": 4}, {"start": 3, "stop": 5}]}
        )


def test_scale_follows_the_method() -> None:
    assert CANDIDATE.scale == 4.0
    assert math.isclose(CANDIDATE.model_copy(update={"method": Method.RSLORA}).scale, 32 / math.sqrt(8))


def test_a_candidate_keeps_its_identity_through_json() -> None:
    again = Candidate.model_validate_json(CANDIDATE.model_dump_json())
    assert again == CANDIDATE
    assert again.identity == CANDIDATE.identity
    assert again.model_copy(update={"rank": 4}).identity != CANDIDATE.identity


@given(st.integers(1, 500), st.integers(0, 20), st.integers(0, 400), st.sampled_from(Schedule))
def test_the_learning_rate_never_exceeds_its_peak_and_starts_above_zero(
    steps: int, warmup: int, hold: int, schedule: Schedule
) -> None:
    fidelity = Fidelity(steps=steps, batch_size=1, seed=0, schedule=schedule, warmup_steps=warmup, hold_steps=hold)
    factors = [fidelity.learning_rate_factor(step) for step in range(steps)]
    assert all(0 < factor <= 1 for factor in factors)
    rising, falling = factors[: max(warmup, hold)], factors[max(warmup, hold) :]
    assert rising == sorted(rising)
    assert set(factors[warmup:hold]) <= {1.0}
    if schedule is Schedule.CONSTANT:
        assert factors == sorted(factors)
    elif len(falling) > 1:
        assert falling == sorted(falling, reverse=True)
        assert falling[-1] == pytest.approx(1 / len(falling))


@pytest.mark.parametrize(
    ("text", "seconds", "unit"),
    [
        ("8gpu-h", 28800, Unit.GPU),
        ("30gpu-min", 1800, Unit.GPU),
        ("2cpu-h", 7200, Unit.CPU),
        ("45min", 2700, Unit.WALL),
        ("1.5h", 5400, Unit.WALL),
        ("90s", 90, Unit.WALL),
        ("16000gpu-s", 16000, Unit.GPU),
    ],
)
def test_budgets_are_read_in_every_unit(text: str, seconds: float, unit: Unit) -> None:
    budget = Budget.parse(text)
    assert (budget.seconds, budget.unit) == (seconds, unit)
    assert Budget.parse(str(budget)) == budget


@pytest.mark.parametrize("text", ["", "8", "gpu-h", "-3h", "0min", "8 gpus", "8gpu-d", "1e3s"])
def test_any_other_text_is_refused_with_the_forms(text: str) -> None:
    with pytest.raises(BudgetError, match="8gpu-h"):
        Budget.parse(text)


def test_a_budget_nobody_has_is_refused_before_it_is_counted_with() -> None:
    assert Budget.parse("1000000h").seconds == 3.6e9
    with pytest.raises(BudgetError, match="more than a million hours"):
        Budget.parse("9" * 20 + "h")


def test_gpu_hours_without_a_gpu_name_the_unit_to_use() -> None:
    with pytest.raises(BudgetError, match="8cpu-h"):
        Budget.parse("4gpu-h").wall_seconds(gpus=0, cores=2)
    with pytest.raises(BudgetError, match="gpu-h"):
        Budget.parse("4cpu-h").wall_seconds(gpus=1, cores=16)


def test_a_budget_lasts_shorter_on_more_devices() -> None:
    assert Budget.parse("8gpu-h").wall_seconds(gpus=4, cores=64) == 7200
    assert Budget.parse("2cpu-h").wall_seconds(gpus=0, cores=2) == 3600
    assert Budget.parse("45min").wall_seconds(gpus=4, cores=64) == 2700


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5))))
def test_the_front_is_what_nothing_dominates(points: list[tuple[int, int]]) -> None:
    front = pareto_front(points, lambda point: (float(point[0]), float(point[1])))
    for point in points:
        dominated = any(o[0] <= point[0] and o[1] <= point[1] and o != point for o in points)
        assert (point in front) == (not dominated)
    assert len(front) == len(set(front))


def test_levers_are_switched_by_name() -> None:
    assert Levers.switched() == Levers()
    chosen = Levers.switched(on=("compile", "packing"), off=("liger", "prefix_cache"))
    assert chosen == Levers(compile=True, liger=False, prefix_cache=False)
    assert Levers.switched(off=("packing",)).packing == 1
    assert not any((Levers.none().compile, Levers.none().liger, Levers.none().prefix_cache))


@pytest.mark.parametrize(("on", "off"), [(("turbo",), ()), ((), ("turbo",)), (("compile",), ("compile",))])
def test_a_lever_that_is_none_or_both_is_refused(on: tuple[str, ...], off: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match=r"turbo|on and off"):
        Levers.switched(on=on, off=off)
