"""Finalists: who is trained longer, and in which order when the time may not do for all."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from bandsearch.search.decision import SEEDS_NEEDED, deciding, in_contention
from bandsearch.search.evidence import LOWEST_LOSS, Aim, Contender
from bandsearch.search.noise import is_ahead
from bandsearch.search.proposal import Proposal
from bandsearch.search.strata import WidthClass, width_class
from bandsearch.values.candidate import Role, rates_differ
from bandsearch.values.trial import TrialResult, TrialState

# The most seeds of one that is hard to tell from another.
MOST_SEEDS = 5
# Of the trainings, kept for more seeds of those on whom the decision rests: of many on two seeds the best is partly
# lucky. Fewer than four contenders are not left out for it.
SHARE_KEPT, FEWEST = 1 / 4, 4


def pick_finalists(
    results: Sequence[TrialResult],
    layer_count: int,
    searched: int,
    excluded: Collection[str] = (),
    confirmed: Mapping[str, Mapping[int, float]] | None = None,
) -> list[Proposal]:
    """The candidates to confirm, the most needed first: full depth at two rates, the searched ones, other baselines.

    Of the searched candidates the best with at most half of full depth's parameters (as good as full depth it is worth
    handing over, which a wide one is only if it is better), the best of all and the best of every width class (a narrow
    band is not dropped for what a short proxy says), then the next best, `searched` in all; of every kind of baseline
    the best rate, and of full depth the best of those that are far from it too: what a short proxy takes for the best
    rate is often not that of a full training, and a win over a baseline at the wrong rate is none. Better is who got to
    a higher rung, then who has the lower loss there. Identities in `excluded` (they diverged) step back.

    `confirmed` are the losses so far by identity and seed. Once both rates of full depth share a seed, the worse steps
    back behind the searched ones; and if the proxy's rate was the worse one, the first searched one is taken on at a
    rate that differs as much from its own too, and the others follow whichever of its two was better: one seed of full
    depth is little to go by.
    """
    ranked = sorted(
        (
            result
            for result in results
            if result.state in (TrialState.COMPLETE, TrialState.PRUNED)
            and result.points
            # An identity is a hash of all that a candidate is, and mostly nobody is excluded.
            and not (excluded and result.candidate.identity in excluded)
        ),
        key=lambda result: (-result.steps, result.points[-1].loss, result.number),
    )
    best_of: dict[Role | WidthClass, TrialResult] = {}
    for result in ranked:
        kind = result.role if result.role.is_baseline else width_class(result.candidate, layer_count)
        best_of.setdefault(kind, result)
    own = [result for result in ranked if not result.role.is_baseline]
    own = list({result.candidate: result for result in reversed(own)}.values())[::-1]
    full = [result for result in ranked if result.role is Role.FULL_DEPTH]
    small = [each for each in own if full and 2 * each.trainable_parameters <= full[0].trainable_parameters][:1]
    tried = [result.candidate.learning_rate for result in results]
    leaders = [result for result in own if result in best_of.values()]
    chosen = list(dict.fromkeys([*small, *leaders, *own]))[:searched]
    baselines = [result for result in ranked if result.role.is_baseline and result in best_of.values()]
    return _in_turn(
        [Proposal.of(result) for result in _at_two_rates(full)],
        [Proposal.of(result) for result in chosen],
        [Proposal.of(result) for result in baselines if result.role is not Role.FULL_DEPTH],
        confirmed or {},
        excluded,
        # Within what was searched: bounds that somebody has set hold for the confirmation too.
        rates=(min(tried, default=0.0), max(tried, default=0.0)),
        free_number=max((result.number for result in results), default=-1) + 1,
    )


def _in_turn(
    full_depth: list[Proposal],
    searched: list[Proposal],
    others: list[Proposal],
    confirmed: Mapping[str, Mapping[int, float]],
    excluded: Collection[str],
    rates: tuple[float, float],
    free_number: int,
) -> list[Proposal]:
    def losses(proposal: Proposal) -> Mapping[int, float]:
        return confirmed.get(proposal.candidate.identity, {})

    proxy_was_right = is_ahead(*map(losses, full_depth)) if len(full_depth) == 2 else None
    if proxy_was_right is None:
        return _distinct(full_depth, searched, others)
    best, worse = full_depth if proxy_was_right else full_depth[::-1]
    if not proxy_was_right:
        shift = best.candidate.learning_rate / worse.candidate.learning_rate
        shifted = [_at_rate(each, shift, rates, free_number + place) for place, each in enumerate(searched)]
        searched = _at_better_rates(searched, shifted, losses, excluded)
    return _distinct([best], searched, [worse, *others])


def _distinct(first: list[Proposal], searched: list[Proposal], others: list[Proposal]) -> list[Proposal]:
    """In this order, nobody twice: confirmed under two numbers, one candidate passes for two. A baseline stays one."""
    taken = {proposal.candidate.identity for proposal in (*first, *others)}
    kept: dict[str, Proposal] = {}
    for proposal in searched:
        if proposal.candidate.identity not in taken:
            kept.setdefault(proposal.candidate.identity, proposal)
    return [*first, *kept.values(), *others]


def _at_better_rates(
    searched: Sequence[Proposal],
    shifted: Sequence[Proposal],
    losses: Callable[[Proposal], Mapping[int, float]],
    excluded: Collection[str],
) -> list[Proposal]:
    """The first at both rates, the others at those that were better for it; till that is known, at the shifted ones."""
    if not searched or shifted[0].candidate.identity in excluded:
        return list(searched)
    (first, *own), (moved, *more) = searched, shifted
    more = [each for each in more if each.candidate.identity not in excluded]
    shift_is_right = is_ahead(losses(moved), losses(first))
    if shift_is_right is None:
        return [moved, first, *more, *own]
    return [moved, *more, *own, first] if shift_is_right else [first, *own, moved]


def _at_rate(proposal: Proposal, shift: float, rates: tuple[float, float], number: int) -> Proposal:
    low, high = rates
    rate = min(max(float(f"{shift * proposal.candidate.learning_rate:.4g}"), low), high)
    candidate = proposal.candidate.model_copy(update={"learning_rate": rate})
    return proposal.model_copy(update={"number": number, "candidate": candidate, "proposed_by": "confirm"})


def _at_two_rates(ranked: Sequence[TrialResult]) -> list[TrialResult]:
    """The first of `ranked`, and the first at another rate than its."""
    if not ranked:
        return []
    rate = ranked[0].candidate.learning_rate
    apart = [each for each in ranked if rates_differ(each.candidate.learning_rate, rate)]
    return [ranked[0], *apart[:1]]


def next_training(
    contenders: Sequence[Contender],
    started: Collection[tuple[int, int]],
    seeds: int,
    capacity: float,
    aim: Aim = LOWEST_LOSS,
) -> tuple[int, int] | None:
    """The (contender, seed) to train next, both by index; None when nothing more is worth it.

    `started` holds the pairs that are done or under way, `capacity` how many trainings fit the time, those included.
    First every contender on the first seed, then on the second. Where not even two seeds each fit, with a quarter of
    the trainings to spare, the last contenders are left out, but never the first two: whoever has a single seed cannot
    be handed over. After that, until as many trainings are done as `seeds` for every contender, those on whom the
    decision rests come first, then those that are still in contention: what is clearly worse than the best leaves its
    seeds to those that are hard to tell apart (racing, Maron and Moore 1993), but nobody gets more than MOST_SEEDS.
    """
    needed = min(SEEDS_NEEDED, seeds)
    taken = len(contenders)

    def asked() -> float:
        kept = SHARE_KEPT * capacity if taken > FEWEST else 0.0
        return taken * needed + sum(index >= taken for index, _ in started) + kept

    while taken > 2 and asked() > capacity:
        taken -= 1
    first = range(taken)
    for pair in ((index, seed) for seed in range(needed) for index in first):
        if pair not in started:
            return pair
    if len(started) >= seeds * len(contenders):
        return None
    among = [contenders[index] for index in first]
    racing, leading = in_contention(among, aim.tolerance), deciding(among, aim)
    turns = [(index, seed) for seed in range(needed, max(seeds, MOST_SEEDS)) for index in racing]
    turns.sort(key=lambda pair: pair[0] not in leading)
    return next((pair for pair in turns if pair not in started), None)
