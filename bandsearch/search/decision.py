"""The decision: who is handed over, from validation losses over several seeds. Pure, so that it can be replayed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bandsearch.search.evidence import LOWEST_LOSS, Aim, Contender, Evidence
from bandsearch.search.noise import Noise, is_ahead
from bandsearch.search.proposal import Proposal
from bandsearch.values.candidate import Candidate, Role
from bandsearch.values.evaluation import Choice, Finalist, Winner
from bandsearch.values.spec import Objective

# Seeds that who is handed over must have been trained on: of many the best on one seed is mostly lucky.
SEEDS_NEEDED = 2


def decide(contenders: Sequence[Contender], baseline: Proposal, steps: int, aim: Aim = LOWEST_LOSS) -> Winner:
    """Who is handed over after confirmation at `steps` steps.

    - A contender whose mean loss is below the tuned full-depth baseline's by more than chance explains wins, the best
      of those that do: one-sided t-test on the pooled noise (or the pair's own, where larger), its level divided by the
      number of contenders (Bonferroni), so that where depth does not matter at most 5 % of runs declare a win. With
      enough seeds any difference is one, so it must be larger than the tolerance too.
    - Otherwise the contender with the fewest trainable parameters among those within noise of the best, of those that
      are not larger than the baseline. Within noise is one standard error of the difference, at most three quarters
      of what a seed does to a loss, or the tolerance where that is larger.
    - Whoever was trained on a single seed, the baseline apart, is not handed over.
    - Where noise cannot be judged (one seed) or nothing was confirmed, the baseline.

    With the objective `retention` the smallest divergence from the base takes the place of the fewest parameters, and
    also decides between winners within noise of the best of them.

    Contenders without losses are ignored. The winner's finalists are in the order of their mean loss, which is adjusted
    for the seeds that each was trained on, as in the test.
    """
    measured = [contender for contender in contenders if contender.losses]
    if any(each.divergence is None for each in measured):
        # What was not measured for all cannot decide between them.
        aim = replace(aim, objective=Objective.LOSS)
    chosen, choice, reason = _choose(measured, baseline, steps, aim)
    means = Noise.of([contender.losses for contender in measured]).means if measured else ()
    finalists = [_finalist(each, float(mean), steps) for each, mean in zip(measured, means, strict=True)]
    return Winner(
        candidate=chosen.candidate,
        role=chosen.role,
        trainable_parameters=chosen.trainable_parameters,
        choice=choice,
        reason=reason,
        baseline=baseline.candidate,
        baseline_parameters=baseline.trainable_parameters,
        tolerance=aim.tolerance,
        finalists=tuple(sorted(finalists, key=lambda each: each.loss)),
    )


def tuned_baseline(contenders: Sequence[Contender]) -> Contender:
    """Full depth at the rate that came out best on the seeds that the rates share; the first where there is no loss."""
    full_depth = [each for each in contenders if each.proposal.role is Role.FULL_DEPTH and each.losses]
    best = full_depth[0] if full_depth else contenders[0]
    for other in full_depth[1:]:
        if is_ahead(best.losses, other.losses) is False:
            best = other
    return best


def deciding(contenders: Sequence[Contender], aim: Aim) -> set[int]:
    """On whom the decision rests as things stand: the tuned baseline, the best, and who would be handed over."""
    baseline = tuned_baseline(contenders).proposal
    winner = decide(contenders, baseline, 0, aim)
    named = {baseline.candidate, winner.candidate, *(each.candidate for each in winner.finalists[:1])}
    return {index for index, each in enumerate(contenders) if each.proposal.candidate in named}


def in_contention(contenders: Sequence[Contender], tolerance: float = 0.0) -> list[int]:
    """Which of them may still be handed over: the tuned baseline, and all whose mean is not above the best one's by
    more than chance explains (one-sided, 95 %) and the tolerance allows; those without losses too."""
    baseline = tuned_baseline(contenders)
    measured = [index for index, contender in enumerate(contenders) if contender.losses]
    evidence = Evidence.of([contenders[index] for index in measured], baseline.proposal, Aim(tolerance=tolerance))
    if evidence is None:
        return list(range(len(contenders)))
    best = evidence.best(range(len(measured)))
    beaten = {index for place, index in enumerate(measured) if evidence.is_beaten(place, best)}
    return [index for index, each in enumerate(contenders) if index not in beaten or each is baseline]


def _choose(measured: Sequence[Contender], baseline: Proposal, steps: int, aim: Aim) -> tuple[Proposal, Choice, str]:
    if not measured:
        reason = "No candidate could be confirmed in the time there was, so full-depth LoRA is handed over."
        return baseline, Choice.UNCOMPARED, reason
    able = [
        each for each in measured if len(each.losses) >= SEEDS_NEEDED or each.proposal.candidate == baseline.candidate
    ]
    evidence = Evidence.of(able, baseline, aim)
    if evidence is None:
        reason = (
            "The confirmation is too small to tell candidates from noise (it takes two candidates on two seeds), so "
            "full-depth LoRA is handed over."
        )
        return baseline, Choice.UNCOMPARED, reason
    if evidence.base is None:
        return _smallest(evidence, "The full-depth baseline gave no result in confirmation. ")
    if winners := evidence.winners(evidence.base):
        return _best(evidence, winners, evidence.base, steps)
    return _smallest(evidence, _no_win(evidence, evidence.base, steps))


def _best(evidence: Evidence, winners: Sequence[int], base: int, steps: int) -> tuple[Proposal, Choice, str]:
    best, closest = evidence.best(winners), ""
    if evidence.by_divergence:
        alike = evidence.equals(best, winners)
        best = evidence.preferred(alike)
        closest = f" Of {len(alike)} winners within noise of each other it stays closest to the base"
        closest += f" ({evidence.divergence(best):.4f} nats a token)."
    proposal = evidence.contenders[best].proposal
    reason = (
        f"{_named(proposal.candidate)} reaches a validation loss of {evidence.mean(best):.4f} against "
        f"{evidence.mean(base):.4f} of tuned full-depth LoRA ({_seeds(evidence)}, {steps} steps): "
        f"{evidence.noise.difference(base, best):.4f} better, where chance explains up to "
        f"{evidence.chance(best, base):.4f} ({_rule(evidence)}). {_share(proposal, evidence.baseline)}{closest}"
    )
    return proposal, Choice.BEATS_BASELINE, reason


def _no_win(evidence: Evidence, base: int, steps: int) -> str:
    best = evidence.best([index for index in range(len(evidence.contenders)) if index != base])
    behind = evidence.noise.difference(best, base)
    chance, least = evidence.chance(best, base), evidence.unimportant(base)
    beyond, why = ("beyond noise", _rule(evidence)) if chance >= least else ("by as much as matters", "what matters")
    return (
        f"No candidate beats tuned full-depth LoRA {beyond}: on validation ({_seeds(evidence)}, {steps} steps) the "
        f"best is {abs(behind):.4f} {'worse' if behind > 0 else 'better'} than its {evidence.mean(base):.4f}; a win "
        f"needs at least {max(chance, least):.4f} better ({why}). "
    )


def _smallest(evidence: Evidence, lost: str) -> tuple[Proposal, Choice, str]:
    """The fewest parameters, or the smallest divergence, within noise of the best; what is larger than the baseline had
    to win. `lost` says why nobody did.
    """
    sizes = [contender.proposal.trainable_parameters for contender in evidence.contenders]
    small = [index for index, size in enumerate(sizes) if size <= evidence.baseline.trainable_parameters]
    allowed = small or range(len(sizes))
    best = evidence.best(allowed)
    first = evidence.preferred(evidence.equals(best, allowed))
    chosen = evidence.contenders[first].proposal
    better, most = ("closer to the base", "closest to the base") if evidence.by_divergence else ("smaller", "smallest")
    if chosen.candidate == evidence.baseline.candidate:
        reason = f"{lost}Nothing {better} is within noise of the best, so full depth is handed over."
        return chosen, Choice.BASELINE, reason
    if first == best:
        why = f"{_named(chosen.candidate)}: the best, and nothing {better} is within noise of it"
    else:
        why = (
            f"{_named(chosen.candidate)}: the {most} within noise of the best ({evidence.mean(first):.4f} against "
            f"{evidence.mean(best):.4f}, where {evidence.equal_within(first, best):.4f} passes for equal)"
        )
    if evidence.by_divergence:
        why += f", at {evidence.divergence(first):.4f} nats a token from the base"
    choice = Choice.CLOSEST_WITHIN_NOISE if evidence.by_divergence else Choice.SMALLEST_WITHIN_NOISE
    return chosen, choice, f"{lost}Confirmation chose {why}. {_share(chosen, evidence.baseline)}"


def _finalist(contender: Contender, mean: float, steps: int) -> Finalist:
    return Finalist(
        candidate=contender.proposal.candidate,
        role=contender.proposal.role,
        trainable_parameters=contender.proposal.trainable_parameters,
        steps=steps,
        loss=mean,
        losses=tuple(contender.losses[seed] for seed in sorted(contender.losses)),
        divergence=contender.divergence,
    )


def _named(candidate: Candidate) -> str:
    bands = " and ".join(map(str, candidate.bands))
    layers = "layers" if len(candidate.layers) > 1 else "layer"
    return f"LoRA on {layers} {bands} (rank {candidate.rank}, {'+'.join(candidate.targets)})"


def _seeds(evidence: Evidence) -> str:
    counts = sorted({len(contender.losses) for contender in evidence.contenders})
    return f"{counts[0]} seeds" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"


def _rule(evidence: Evidence) -> str:
    rivals = len(evidence.contenders) - 1
    return f"one-sided 95 % test, corrected for {rivals} candidate{'s' if rivals > 1 else ''}"


def _share(proposal: Proposal, baseline: Proposal) -> str:
    share = proposal.trainable_parameters / baseline.trainable_parameters
    return f"It trains {share:.0%} of the baseline's parameters."
