"""The learning-rate range test: short runs from one start, compared at equal steps on equal batches.

Separate runs rather than one rising ramp: a ramp reads every rate on weights that the lower rates have already
moved, so it places the best rate by its own speed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from bandsearch.values.errors import ModelError
from bandsearch.values.profile import RatePoint, RateRange

# Exponents of ten. The usual LoRA rates lie a little below the start, those of very small models above it.
START, LOWEST, HIGHEST = -3.0, -6.0, 0.0
# Shares of the best rate's fall in loss that still count as falling well. A rate with a quarter of the fall catches
# up in a training several times longer; one beyond the best only gets worse there.
LOW_SHARE, HIGH_SHARE = 0.25, 0.8
# At least this far below the best, in powers of ten: real trainings are five to fifty times longer than the test's
# runs, and longer trainings end lower at lower rates.
LEAST_BELOW = 1.0
# Of the way to the next rate that was tried above the best: what is best may lie anywhere between the two, and after
# three steps a rate that is right looks too high.
SHARE_ABOVE = 0.5
# This far above a best rate that time let nothing be tried beyond.
UNTRIED_ABOVE = 1.0
# A fall of less than this share of the first loss is no learning.
LEAST_FALL = 0.005

Losses = Mapping[float, float | None]


def range_test(
    base_loss: float, loss_at: Callable[[float], float | None], may_go_on: Callable[[int], bool]
) -> RateRange:
    """Try learning rates where they tell most, at least one, while `may_go_on(runs so far)`.

    `loss_at(rate)` is the loss after a fixed number of steps from the same start, None where training diverged;
    `base_loss` the loss before the first step. Raises ModelError where every rate diverges.
    """
    losses: dict[float, float | None] = {}
    while (exponent := next_exponent(losses)) is not None and (not losses or may_go_on(len(losses))):
        losses[exponent] = loss_at(10.0**exponent)
    return decide(base_loss, losses)


def next_exponent(losses: Losses) -> float | None:
    """The power of ten to try next: decades until the best one has neighbours on both sides, then half decades."""
    if not losses:
        return START
    finite = {exponent: loss for exponent, loss in losses.items() if loss is not None}
    if not finite:
        lower = min(losses) - 1
        return lower if lower >= LOWEST else None
    decade = min((exponent for exponent in finite if exponent.is_integer()), key=lambda each: finite[each])
    best = min(finite, key=lambda each: finite[each])
    for exponent in (decade + 1, decade - 1, best + 0.5, best - 0.5):
        if LOWEST <= exponent <= HIGHEST and exponent not in losses:
            return exponent
    return None


def decide(base_loss: float, losses: Losses) -> RateRange:
    """The span of rates at which the loss falls well, from the loss at each exponent of ten (None: diverged).

    `best` has the lowest loss. `low` and `high` are where the fall, interpolated over the logarithm of the rate,
    drops to LOW_SHARE and HIGH_SHARE of the best one's, at least LEAST_BELOW decades below and half way to the next
    higher rate that was tried, UNTRIED_ABOVE decades where none was. Where no rate learns anything, `best` is the
    highest one that does no harm.
    """
    falls = {exponent: base_loss - loss for exponent, loss in losses.items() if loss is not None}
    if not falls:
        raise ModelError(
            f"Training diverges at every rate from {10.0 ** max(losses):.0e} down to {10.0 ** min(losses):.0e}.",
            "Check the data for broken examples, or load the model with --dtype fp32.",
        )
    best = max(falls, key=lambda each: (falls[each], -each))
    if falls[best] < LEAST_FALL * abs(base_loss):
        harmless = [exponent for exponent, fall in falls.items() if fall > -LEAST_FALL * abs(base_loss)]
        best = max(harmless, default=min(falls))
    ascending = sorted(losses)
    place = ascending.index(best)
    low = _edge(ascending[place::-1], falls, LOW_SHARE)
    high = _edge(ascending[place:], falls, HIGH_SHARE)
    higher = ascending[place + 1 :]
    above = SHARE_ABOVE * (higher[0] - best) if higher else min(UNTRIED_ABOVE, HIGHEST - best)
    return RateRange(
        low=10.0 ** min(low, best - LEAST_BELOW),
        best=10.0**best,
        high=10.0 ** max(high, best + above),
        points=tuple(RatePoint(learning_rate=10.0**exponent, loss=losses[exponent]) for exponent in ascending),
    )


def _edge(outward: list[float], falls: Mapping[float, float], share: float) -> float:
    """Where, going outward from the best exponent, the fall first drops below its `share`; the last one if never."""
    best = outward[0]
    wanted = share * falls[best]
    last = best
    for exponent in outward[1:]:
        fall = falls.get(exponent)
        if fall is None:
            return last
        if fall < wanted:
            gap = falls[last] - fall
            return last + (exponent - last) * (falls[last] - wanted) / gap if math.isfinite(gap) and gap > 0 else last
        last = exponent
    return last
