from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from bandsearch.search.halving import Halving

finite = st.floats(0, 10, allow_nan=False)


@given(st.lists(finite, min_size=1, max_size=40), st.integers(2, 4))
def test_a_loss_goes_on_if_it_is_among_the_best_share_so_far(losses: list[float], eta: int) -> None:
    halving = Halving((10, 30, 90), eta)
    for index, loss in enumerate(losses):
        better = sum(other < loss for other in losses[:index])
        places = max(1, (index + 1) // eta)
        assert halving.decide("narrow", 0, loss).keep == (better < places)


@given(st.lists(st.tuples(st.sampled_from(["narrow", "wide"]), finite), max_size=30))
def test_strata_and_rungs_do_not_touch_each_other(readings: list[tuple[str, float]]) -> None:
    together = Halving((10, 30))
    alone = {"narrow": Halving((10, 30)), "wide": Halving((10, 30))}
    for stratum, loss in readings:
        assert together.decide(stratum, 0, loss) == alone[stratum].decide(stratum, 0, loss)
        assert together.decide(stratum, 1, loss).keep


def test_about_one_in_eta_is_kept() -> None:
    kept = []
    for seed in range(50):
        halving, numbers = Halving((10, 30), 3), random.Random(seed)
        kept.append(sum(halving.decide("narrow", 0, numbers.random()).keep for _ in range(60)))
    assert 60 / 3 - 2 < sum(kept) / len(kept) < 60 / 3 + 3


def test_who_is_stopped_is_told_why() -> None:
    halving = Halving((10, 30))
    halving.decide("full_depth", 0, 0.5)
    assert halving.decide("full_depth", 0, 0.6).reason == (
        "loss 0.6000 after 10 steps is not among the best 1 of 2 in full depth (cut 0.5000)"
    )
