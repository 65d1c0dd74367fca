"""How finalists are confirmed: at which length, on how many seeds, and what that takes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from bandsearch.search.clock import MARGIN
from bandsearch.values.plan import Costs
from bandsearch.values.spec import Objective, RunSpec

CONFIRM_SHARE, SEARCH_SHARE = 0.35, 0.40
# Lengths of a confirmation, of that which the search is made for.
CONFIRM_FRACTIONS = (1.0, 2 / 3, 1 / 2)
# Texts on which a confirmation is read for what it forgets where that decides nothing, and what they may take of it.
MOST_TEXTS, FEWEST_TEXTS, TEXTS_SHARE = 32, 16, 0.05
# Full depth at two rates, and its better one and a rival on two seeds: with fewer trainings nothing can be compared, so
# a small budget gives the confirmation more of what is left.
LEAST_TRAININGS, LARGEST_CONFIRM_SHARE = 5, 0.6
# Rates at which full depth is confirmed.
FULL_DEPTHS = 2
# Four kinds, full depth at two rates. Within a budget time is set aside for full depth; the others take what is left.
BASELINES = 5


def confirm_share(free: float, least: float) -> float:
    """Seconds of the confirmation, of `free` for search and confirmation; in less than `least` it compares nothing."""
    return max(CONFIRM_SHARE / (CONFIRM_SHARE + SEARCH_SHARE) * free, min(LARGEST_CONFIRM_SHARE * free, least))


class ConfirmChoice(NamedTuple):
    """`fraction` of the length that the search is made for, on so many seeds, of searched finalists and baselines."""

    fraction: float
    seeds: int
    finalists: int
    baselines: int = FULL_DEPTHS

    @property
    def trainings(self) -> int:
        return self.seeds * (self.finalists + self.baselines)


# Where too little could be confirmed to compare anything.
NOTHING = ConfirmChoice(1.0, seeds=1, finalists=0, baselines=0)


def confirm_choices(*, bounded: bool, fractions: Sequence[float] = CONFIRM_FRACTIONS) -> list[ConfirmChoice]:
    """Of every length the most telling first. Seeds beyond the third are given where they are needed (`next_training`),
    so more time buys more finalists."""
    if not bounded:
        return [ConfirmChoice(2 / 3, 2, 3, BASELINES)]
    return sorted(
        itertools.starmap(ConfirmChoice, itertools.product(fractions, (3, 2), (12, 8, 6, 4))),
        key=lambda choice: choice.trainings * (1.5 if choice.seeds > 2 else 1.0),
        reverse=True,
    )


def confirm_texts(spec: RunSpec, costs: Costs, steps: float, retained: int) -> int:
    """Texts that a confirmation of so many steps is read on at its end, of those `retained` for the evaluation.

    All of them where what is forgotten decides. Otherwise it is told beside the losses: on as many as cost little, or
    on none where those say nothing.
    """
    if spec.objective is Objective.RETENTION:
        return retained
    most = min(MOST_TEXTS, retained)
    seconds = TEXTS_SHARE * steps * costs.seconds_per_candidate_step
    paid = most if costs.seconds_per_retention * most <= seconds else int(seconds / costs.seconds_per_retention)
    return paid if paid >= min(FEWEST_TEXTS, most) else 0


def confirm_seconds(spec: RunSpec, costs: Costs, trainings: int, steps: float, retained: int, engines: int) -> float:
    """Wall seconds of so many confirmations, with what is read at their end; of few of them no less than the passes
    that they share, which none begins without (`Clock.fits`)."""
    training = steps * costs.seconds_per_candidate_step * MARGIN
    reading = costs.with_divergence(confirm_texts(spec, costs, steps, retained)).seconds_per_validation
    rounds = math.ceil(trainings / (engines * costs.packing))
    shared = MARGIN * (steps * costs.seconds_per_packed_step + reading)
    return max(math.ceil(trainings / engines) * (training + reading), rounds * shared)


def confirm_choice(
    choices: Sequence[ConfirmChoice], seconds_of: Callable[[int, float], float], share: float
) -> ConfirmChoice:
    """The most telling of `choices` that `share` seconds pay for; `seconds_of` so many trainings of such a fraction.

    Of the greatest length at which anything can be compared, were it with fewer finalists than any of them has
    (`next_training` leaves out the last): who is ahead in short trainings is often behind in long ones. NOTHING where
    nothing can be compared at any of them.
    """
    fitting = [choice.fraction for choice in choices if seconds_of(LEAST_TRAININGS, choice.fraction) <= share]
    if not fitting:
        return NOTHING
    alike = [choice for choice in choices if choice.fraction == max(fitting)]
    return next((choice for choice in alike if seconds_of(choice.trainings, choice.fraction) <= share), alike[-1])
