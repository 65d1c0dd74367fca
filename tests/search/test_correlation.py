from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from surface import profile
from trial_results import a_result

from bandsearch.search.correlation import signals
from bandsearch.values.band import Band
from bandsearch.values.candidate import Candidate
from bandsearch.values.evaluation import Finalist
from bandsearch.values.trial import TrialResult


def tried(start: int, width: int, losses: tuple[float, ...]) -> TrialResult:
    band = Band(start=start, stop=start + width)
    candidate = Candidate(bands=(band,), rank=8, alpha=8, targets=("all",), learning_rate=1e-3)
    return a_result(start, candidate, losses)


def confirmed(trial: TrialResult, loss: float, *by_seed: float) -> Finalist:
    return Finalist(
        candidate=trial.candidate,
        role=trial.role,
        trainable_parameters=1,
        steps=200,
        loss=loss,
        losses=by_seed or (loss,),
    )


def test_rungs_are_compared_with_confirmed_losses_within_and_across_widths() -> None:
    """Early losses order the widths the wrong way round, but each width's candidates rightly. One was confirmed on a
    seed that is hard for all: its loss is adjusted for that."""
    search = [
        tried(0, 3, (0.90, 0.50)),
        tried(1, 3, (0.92, 0.52)),
        tried(2, 3, (0.94, 0.53)),
        tried(3, 9, (0.50, 0.55)),
        tried(0, 10, (0.52, 0.57)),
        tried(0, 11, (0.54, 0.56)),
        tried(5, 2, (0.99,)),
    ]
    finalists = [confirmed(*pair) for pair in zip(search, (0.20, 0.22, 0.24, 0.30, 0.32, 0.34), strict=False)]
    finalists[0] = confirmed(search[0], 0.20, 0.40)
    first, last, probe, width = signals(search, finalists, profile(), (30, 90))
    assert (first.predictor, first.outcome, first.across.pairs) == ("loss after 30 steps", "confirmed loss", 6)
    assert first.across.correlation == pytest.approx(1 - 6 * 54 / (6 * 35))
    assert first.within is not None
    assert (first.within.correlation, first.within.pairs) == (pytest.approx(1.0), 6)
    assert (last.predictor, last.across.pairs) == ("loss after 90 steps", 6)
    assert last.across.correlation == pytest.approx(1 - 6 * 2 / (6 * 35))
    assert last.within is not None
    assert last.within.correlation == pytest.approx((1.0 + 0.5) / 2)
    # A probe that finds all layers alike says no more than the width.
    assert probe.outcome == width.outcome == "loss after 90 steps"
    assert probe.across == width.across
    assert width.within is None
    # Those of a class of their own, as a fourth width here, are no part of what is compared within classes.
    middle = [tried(0, 6, (0.7, 0.54))]
    _, also, *_ = signals(search + middle, [*finalists, confirmed(middle[0], 0.28)], profile(), (30, 90))
    assert also.within is not None
    assert (also.across.pairs, also.within.pairs) == (7, 6)


@pytest.mark.parametrize(("count", "shown"), [(3, False), (4, False), (5, True)])
def test_what_a_perfect_order_of_so_few_would_not_tell_from_chance_is_left_out(count: int, shown: bool) -> None:
    search = [tried(place, 3, (0.9 - 0.01 * place,)) for place in range(count)]
    finalists = [confirmed(trial, trial.points[0].loss / 2) for trial in search]
    found = signals(search, finalists, profile(), (30,))
    assert [signal.across.correlation for signal in found[:1]] == ([pytest.approx(1.0)] if shown else [])
    # Whether two sides agree perfectly, in either direction, by chance in fewer than one in twenty orders.
    assert shown == (2 / len(list(itertools.permutations(range(count)))) < 0.05)


@given(st.integers(5, 60), st.integers(0, 10))
def test_within_classes_it_takes_more_to_say_something(narrow: int, wide: int) -> None:
    search = [tried(0, 1 + place % 3, (0.9 + 0.001 * place,)) for place in range(narrow)]
    search += [tried(0, 10 + place % 3, (0.5 + 0.001 * place,)) for place in range(wide)]
    search = [trial.model_copy(update={"number": place}) for place, trial in enumerate(search)]
    (probe, width) = signals(search, (), profile(), (30,))
    assert probe.across.chance == pytest.approx(1.96 / (narrow + wide - 1) ** 0.5)
    if probe.within is not None:
        assert probe.within.pairs in (narrow, narrow + wide)
        assert 1 > probe.within.chance >= probe.across.chance or wide < 3
    assert width.across.pairs == narrow + wide
