"""The decision: who is handed over, from validation losses over several seeds. Pure, so that it can be replayed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import stats

from bandsearch.search.noise import Noise, is_ahead, shared_differences
from bandsearch.search.proposal import Proposal
from bandsearch.values.candidate import Candidate, Role
from bandsearch.values.evaluation import Choice, Finalist, Winner
from bandsearch.values.spec import Objective

# One-sided chance of declaring any win where there is none.
FALSE_WIN_RATE = 0.05
# Seeds that who is handed over must have been trained on: of many the best on one seed is mostly lucky.
SEEDS_NEEDED = 2
# Of what a seed does to a loss, that may pass for noise.
MOST_TOLERATED = 0.75


@dataclass(frozen=True)
class Aim:
    """What is to be handed over. `tolerance`: what does not matter, as a share of the loss that it is compared with:
    full depth's where a win is asked for, the best one's where something smaller is."""

    objective: Objective = Objective.LOSS
    tolerance: float = 0.0


LOWEST_LOSS = Aim()


@dataclass(frozen=True)
class Contender:
    """A finalist with its validation losses (nats per token, finite) by seed, and its mean divergence from the base
    where that was measured (nats per token).
    """

    proposal: Proposal
    losses: Mapping[int, float]
    divergence: float | None = None


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
    # What was not measured for all cannot decide between them.
    by_divergence = aim.objective is Objective.RETENTION and all(each.divergence is not None for each in measured)
    chosen, choice, reason = _choose(measured, baseline, steps, by_divergence, aim.tolerance)
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
    measured = [index for index, contender in enumerate(contenders) if contender.losses]
    noise = Noise.of([contenders[index].losses for index in measured]) if measured else None
    if noise is None or noise.freedom == 0:
        return list(range(len(contenders)))
    places = range(len(measured))
    best = min(places, key=lambda place: noise.means[place])
    bound, tolerated = noise.quantile(1 - FALSE_WIN_RATE), tolerance * abs(float(noise.means[best]))
    beaten = {
        measured[place]
        for place in places
        if noise.difference(place, best) > max(bound * noise.standard_error(place, best), tolerated)
    }
    baseline = tuned_baseline(contenders)
    return [index for index, each in enumerate(contenders) if index not in beaten or each is baseline]


def _choose(
    measured: Sequence[Contender], baseline: Proposal, steps: int, by_divergence: bool, tolerance: float
) -> tuple[Proposal, Choice, str]:
    if not measured:
        reason = "No candidate could be confirmed in the time there was, so full-depth LoRA is handed over."
        return baseline, Choice.UNCOMPARED, reason
    measured = [
        each for each in measured if len(each.losses) >= SEEDS_NEEDED or each.proposal.candidate == baseline.candidate
    ]
    noise = Noise.of([contender.losses for contender in measured]) if measured else None
    if noise is None or noise.freedom == 0:
        reason = (
            "The confirmation is too small to tell candidates from noise (it takes two candidates on two seeds), so "
            "full-depth LoRA is handed over."
        )
        return baseline, Choice.UNCOMPARED, reason
    base = next((i for i, each in enumerate(measured) if each.proposal.candidate == baseline.candidate), None)
    if base is None:
        lost = "The full-depth baseline gave no result in confirmation. "
        return _within_noise(measured, noise, baseline, lost, by_divergence, tolerance)
    rivals = [index for index in range(len(measured)) if index != base]
    margins = {index: _win_margin(noise, measured, index, base, len(rivals)) for index in rivals}
    least = tolerance * abs(float(noise.means[base]))
    winners = [index for index in rivals if -noise.difference(index, base) > max(margins[index], least)]
    best = min(winners or rivals, key=lambda index: noise.means[index])
    closest = ""
    if winners and by_divergence:
        alike = [i for i in winners if noise.difference(i, best) <= _tolerance(noise, i, best, tolerance)]
        best = min(alike, key=lambda index: (_divergence(measured[index]), noise.means[index]))
        closest = f" Of {len(alike)} winners within noise of each other it stays closest to the base"
        closest += f" ({_divergence(measured[best]):.4f} nats a token)."
    proposal = measured[best].proposal
    seeds = f"{_seeds(measured)}, {steps} steps"
    rule = f"one-sided 95 % test, corrected for {len(rivals)} candidate{'s' if len(rivals) > 1 else ''}"
    if not winners:
        behind = noise.difference(best, base)
        beyond, why = ("beyond noise", rule) if margins[best] >= least else ("by as much as matters", "what matters")
        lost = (
            f"No candidate beats tuned full-depth LoRA {beyond}: on validation ({seeds}) the best is "
            f"{abs(behind):.4f} {'worse' if behind > 0 else 'better'} than its {noise.means[base]:.4f}; a win needs at "
            f"least {max(margins[best], least):.4f} better ({why}). "
        )
        return _within_noise(measured, noise, baseline, lost, by_divergence, tolerance)
    won = (
        f"{_named(proposal.candidate)} reaches a validation loss of {noise.means[best]:.4f} against "
        f"{noise.means[base]:.4f} of tuned full-depth LoRA ({seeds}): {-noise.difference(best, base):.4f} better, "
        f"where chance explains up to {margins[best]:.4f} ({rule}). {_share(proposal, baseline)}{closest}"
    )
    return proposal, Choice.BEATS_BASELINE, won


def _within_noise(
    measured: Sequence[Contender],
    noise: Noise,
    baseline: Proposal,
    lost: str,
    by_divergence: bool,
    tolerance: float,
) -> tuple[Proposal, Choice, str]:
    """The fewest parameters, or the smallest divergence, within noise of the best; what is larger than the baseline had
    to win.
    """
    parameters = [contender.proposal.trainable_parameters for contender in measured]
    allowed = [index for index, count in enumerate(parameters) if count <= baseline.trainable_parameters]
    if not allowed:
        allowed = list(range(len(measured)))
    best = min(allowed, key=lambda index: noise.means[index])
    within = [i for i in allowed if noise.difference(i, best) <= _tolerance(noise, i, best, tolerance)]

    def preference(index: int) -> tuple[float, float]:
        contender = measured[index]
        first = _divergence(contender) if by_divergence else contender.proposal.trainable_parameters
        return first, float(noise.means[index])

    first = min(within, key=preference)
    chosen = measured[first].proposal
    better, most = ("closer to the base", "closest to the base") if by_divergence else ("smaller", "smallest")
    if chosen.candidate == baseline.candidate:
        return (
            chosen,
            Choice.BASELINE,
            f"{lost}Nothing {better} is within noise of the best, so full depth is handed over.",
        )
    if first == best:
        why = f"{_named(chosen.candidate)}: the best, and nothing {better} is within noise of it"
    else:
        why = (
            f"{_named(chosen.candidate)}: the {most} within noise of the best ({noise.means[first]:.4f} against "
            f"{noise.means[best]:.4f}, where {_tolerance(noise, first, best, tolerance):.4f} passes for equal)"
        )
    if by_divergence:
        why += f", at {_divergence(measured[first]):.4f} nats a token from the base"
    choice = Choice.CLOSEST_WITHIN_NOISE if by_divergence else Choice.SMALLEST_WITHIN_NOISE
    return chosen, choice, f"{lost}Confirmation chose {why}. {_share(chosen, baseline)}"


def _tolerance(noise: Noise, one: int, best: int, tolerance: float) -> float:
    """The one-standard-error rule (Breiman et al. 1984). Student's t has no place in it: knowing the noise badly is no
    reason to take more for equal. With two seeds each the standard error is all of what a seed does, and too much would
    be handed over that is worse. What does not matter to whoever asked is tolerated besides."""
    noisy = min(noise.standard_error(one, best), MOST_TOLERATED * noise.sigma)
    return max(noisy, tolerance * abs(float(noise.means[best])))


def _divergence(contender: Contender) -> float:
    return math.inf if contender.divergence is None else contender.divergence


def _win_margin(noise: Noise, contenders: Sequence[Contender], index: int, base: int, rivals: int) -> float:
    """What a rival must be better by: the pooled noise, or the pair's own where that is larger (a shaky baseline)."""
    one, other = contenders[index].losses, contenders[base].losses
    differences = shared_differences(one, other)
    own = float(stats.sem(differences)) if len(differences) > 1 else 0.0
    return noise.quantile(1 - FALSE_WIN_RATE / rivals) * max(noise.standard_error(index, base), own)


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


def _seeds(measured: Sequence[Contender]) -> str:
    counts = sorted({len(contender.losses) for contender in measured})
    return f"{counts[0]} seeds" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"


def _share(proposal: Proposal, baseline: Proposal) -> str:
    share = proposal.trainable_parameters / baseline.trainable_parameters
    return f"It trains {share:.0%} of the baseline's parameters."
