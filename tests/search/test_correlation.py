from __future__ import annotations

import pytest
from surface import profile

from bandsearch.search.correlation import signals
from bandsearch.values.band import Band
from bandsearch.values.candidate import Candidate, Role
from bandsearch.values.trial import Point, TrialResult, TrialState


def results(number: int, width: int, losses: tuple[float, ...], confirmed: tuple[float, ...]) -> list[TrialResult]:
    candidate = Candidate(
        bands=(Band(start=number, stop=number + width),), rank=8, alpha=8, targets=("all",), learning_rate=1e-3
    )

    def made(stage: str, seed: int, points: tuple[Point, ...]) -> TrialResult:
        return TrialResult(
            number=number,
            candidate=candidate,
            role=Role.SEARCHED,
            seed=seed,
            state=TrialState.COMPLETE,
            points=points,
            trainable_parameters=1,
            proposed_by="test",
            stage=stage,
        )

    curve = tuple(Point(steps=10 * 3**i, loss=loss, seconds=0) for i, loss in enumerate(losses))
    return [
        made("search", 0, curve),
        *(made("confirm", 1 + i, (Point(steps=200, loss=loss, seconds=0),)) for i, loss in enumerate(confirmed)),
    ]


def test_rungs_are_compared_with_mean_confirmed_losses_within_and_across_widths() -> None:
    """Early losses order the widths the wrong way round, but each width's candidates rightly."""
    everything = [
        *results(0, 3, (0.90, 0.50), (0.19, 0.21)),
        *results(1, 3, (0.92, 0.52), (0.21, 0.23)),
        *results(2, 3, (0.94, 0.53), (0.23, 0.25)),
        *results(3, 9, (0.50, 0.55), (0.30,)),
        *results(0, 10, (0.52, 0.57), (0.32,)),
        *results(0, 11, (0.54, 0.56), (0.34,)),
        *results(5, 2, (0.99,), ()),
    ]
    first, last, probe, width = signals(everything, profile(), (10, 30))
    assert (first.predictor, first.outcome, first.pairs) == ("loss after 10 steps", "confirmed loss", 6)
    assert first.within == pytest.approx(1.0)
    assert first.across == pytest.approx(1 - 6 * 54 / (6 * 35))
    assert (last.predictor, last.pairs) == ("loss after 30 steps", 6)
    assert last.across == pytest.approx(1 - 6 * 2 / (6 * 35))
    assert last.within == pytest.approx((1.0 + 0.5) / 2)
    # A probe that finds all layers alike says no more than the width.
    assert probe.outcome == width.outcome == "loss after 30 steps"
    assert probe.across == pytest.approx(width.across)
    assert width.within is None


def test_too_few_to_say() -> None:
    two = [*results(0, 3, (0.9,), (0.2,)), *results(1, 4, (0.8,), (0.1,))]
    assert signals(two, profile(), (10,)) == ()
    (entry,) = signals([*two, *results(2, 5, (0.7,), (0.0,))], profile(), (10,))
    assert (entry.pairs, entry.across, entry.within) == (3, pytest.approx(1.0), None)
