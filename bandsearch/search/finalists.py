"""Finalists: who is trained longer, and in which order when the time may not do for all."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from bandsearch.search.decision import Contender, in_contention
from bandsearch.search.proposal import Proposal
from bandsearch.search.strata import WidthClass, width_class
from bandsearch.values.candidate import Role
from bandsearch.values.trial import TrialResult, TrialState

# Seeds a finalist must have before another one is taken on: one seed tells nothing about noise.
SEEDS_NEEDED = 2
# The most seeds of one that is hard to tell from another.
MOST_SEEDS = 5


def pick_finalists(
    results: Sequence[TrialResult], layer_count: int, searched: int, excluded: Collection[str] = ()
) -> list[Proposal]:
    """The candidates to confirm, the most needed first: full depth, the best searched one, full depth again, others.

    Of the searched candidates the best of all and the best of every width class (a narrow band is not dropped for what
    a short proxy says), then the next best, `searched` in all; of every kind of baseline the best rate, and of full
    depth the next higher one too: what a short proxy takes for the best rate is often too low for a full training, and
    a win over a baseline at the wrong rate is none. Better is who got to a higher rung, then who has the lower loss
    there. Identities in `excluded` (they diverged) step back.
    """
    ranked = sorted(
        (
            result
            for result in results
            if result.state in (TrialState.COMPLETE, TrialState.PRUNED)
            and result.points
            and result.candidate.identity not in excluded
        ),
        key=lambda result: (-result.steps, result.points[-1].loss, result.number),
    )
    best_of: dict[Role | WidthClass, TrialResult] = {}
    for result in ranked:
        kind = result.role if result.role.is_baseline else width_class(result.candidate, layer_count)
        best_of.setdefault(kind, result)
    own = [result for result in ranked if not result.role.is_baseline]
    leaders = [result for result in own if result in best_of.values()]
    chosen = [*leaders, *(result for result in own if result not in leaders)][:searched]
    baselines = [result for result in ranked if result.role.is_baseline and result in best_of.values()]
    full_depth = _at_two_rates([result for result in ranked if result.role is Role.FULL_DEPTH])
    others = [result for result in baselines if result.role is not Role.FULL_DEPTH]
    order = (*full_depth[:1], *chosen[:1], *full_depth[1:], *chosen[1:], *others)
    return [Proposal.of(result) for result in order]


def _at_two_rates(ranked: Sequence[TrialResult]) -> list[TrialResult]:
    """The first of `ranked` and the one at the next higher rate, or else the second."""
    if len(ranked) < 2:
        return list(ranked)
    best, *others = ranked
    higher = [each for each in others if each.candidate.learning_rate > best.candidate.learning_rate]
    return [best, min(higher, key=lambda each: each.candidate.learning_rate) if higher else others[0]]


def next_training(
    contenders: Sequence[Contender], started: Collection[tuple[int, int]], seeds: int, capacity: float
) -> tuple[int, int] | None:
    """The (contender, seed) to train next, both by index; None when nothing more is worth it.

    `started` holds the pairs that are done or under way, `capacity` how many trainings fit the time, those included.
    First every contender on the first seed, then on the second. Where not even two seeds each fit, the last contenders
    are left out, but never the first two. After that those that are still in contention take turns, until as many
    trainings are done as `seeds` for every contender: what is clearly worse than the best leaves its seeds to those
    that are hard to tell apart (racing, Maron and Moore 1993), but nobody gets more than MOST_SEEDS.
    """
    needed = min(SEEDS_NEEDED, seeds)
    taken = max(2, int(min(len(contenders), capacity / needed)))
    first = range(min(taken, len(contenders)))
    for pair in ((index, seed) for seed in range(needed) for index in first):
        if pair not in started:
            return pair
    if len(started) >= seeds * len(first) or seeds <= needed:
        return None
    among = [contenders[index] for index in first]
    racing = in_contention(among)
    turns = ((index, seed) for seed in range(needed, max(seeds, MOST_SEEDS)) for index in racing)
    return next((pair for pair in turns if pair not in started), None)
