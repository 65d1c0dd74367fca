"""Finalists: who is trained longer, and in which order when the time may not do for all."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from bandsearch.search.proposal import Proposal
from bandsearch.search.strata import WidthClass, width_class
from bandsearch.values.candidate import Role
from bandsearch.values.trial import TrialResult, TrialState

# Seeds a finalist must have before another one is taken on: one seed tells nothing about noise.
SEEDS_NEEDED = 2


def pick_finalists(
    results: Sequence[TrialResult], layer_count: int, searched: int, excluded: Collection[str] = ()
) -> list[Proposal]:
    """The candidates to confirm, the most needed first: full depth, the best searched one, the others.

    Of the searched candidates the best of all and the best of every width class (a narrow band is not dropped for what
    a short proxy says), then the next best, `searched` in all; of every kind of baseline the best rate. Better is who
    got to a higher rung, then who has the lower loss there. Identities in `excluded` (they diverged) step back.
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
    full_depth = [result for result in baselines if result.role is Role.FULL_DEPTH]
    others = [result for result in baselines if result.role is not Role.FULL_DEPTH]
    return [Proposal.of(result) for result in (*full_depth, *chosen, *others)]


def confirmation_order(finalists: int, seeds: int, capacity: float) -> list[tuple[int, int]]:
    """(finalist, seed) pairs in the order in which they are trained, when `capacity` trainings fit the time.

    First every finalist on the first seed, then on the second, so that what is missing in the end are last seeds of the
    least promising. Where not even two seeds each fit, the last finalists are left out, but never the first two.
    """
    needed = min(SEEDS_NEEDED, seeds)
    taken = max(2, int(min(finalists, capacity / needed)))
    return [(finalist, seed) for seed in range(seeds) for finalist in range(min(taken, finalists))]
