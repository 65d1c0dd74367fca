"""The decision: who is handed over, from validation losses over several seeds. Pure, so that it can be replayed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from bandsearch.search.proposal import Proposal
from bandsearch.values.candidate import Candidate
from bandsearch.values.evaluation import Choice, Finalist, Winner

# One-sided chance of declaring any win where there is none.
FALSE_WIN_RATE = 0.05
# The one-standard-error rule (Breiman et al. 1984), with Student's t in place of the normal: the level at one sigma.
ONE_SIGMA = float(stats.norm.cdf(1.0))


@dataclass(frozen=True)
class Contender:
    """A finalist with its validation losses (nats per token, finite) by seed."""

    proposal: Proposal
    losses: Mapping[int, float]


@dataclass(frozen=True)
class Noise:
    """Means and their uncertainty under loss = contender + seed + noise, noise alike for all, by least squares.

    The contenders share their seeds, so what a seed does to all of them cancels; the noise is pooled over all of
    them, so a few seeds each are enough. `freedom` is the degrees of freedom of `sigma`; 0 means that it is unknown.
    """

    means: NDArray[np.float64]
    covariance: NDArray[np.float64]
    sigma: float
    freedom: int

    @classmethod
    def of(cls, contenders: Sequence[Contender]) -> Noise:
        seeds = sorted({seed for contender in contenders for seed in contender.losses})
        rows, values = [], []
        for index, contender in enumerate(contenders):
            for seed, loss in contender.losses.items():
                row = np.zeros(len(contenders) + len(seeds))
                row[index] = 1.0
                row[len(contenders) + seeds.index(seed)] = 1.0
                rows.append(row)
                values.append(loss)
        design, observed = np.array(rows), np.array(values)
        # The pseudo-inverse settles the constant that contenders and seeds could trade; differences do not feel it.
        inverse = np.linalg.pinv(design.T @ design)
        effects = inverse @ design.T @ observed
        freedom = len(observed) - int(np.linalg.matrix_rank(design))
        residual = observed - design @ effects
        sigma = float(np.sqrt(residual @ residual / freedom)) if freedom > 0 else float("nan")
        count = len(contenders)
        return cls(effects[:count] + effects[count:].mean(), inverse[:count, :count], sigma, freedom)

    def difference(self, one: int, other: int) -> float:
        return float(self.means[one] - self.means[other])

    def standard_error(self, one: int, other: int) -> float:
        """Of the difference of two means."""
        spread = self.covariance[one, one] + self.covariance[other, other] - 2 * self.covariance[one, other]
        return self.sigma * float(np.sqrt(max(spread, 0.0)))

    def quantile(self, level: float) -> float:
        return float(stats.t.ppf(level, self.freedom))


def decide(contenders: Sequence[Contender], baseline: Proposal, steps: int) -> Winner:
    """Who is handed over after confirmation at `steps` steps.

    - A contender whose mean loss is below the tuned full-depth baseline's by more than chance explains wins, the best
      of those that do: one-sided t-test on the pooled noise, its level divided by the number of contenders
      (Bonferroni), so that on a task where depth does not matter a win is declared in at most 5 % of runs.
    - Otherwise the contender with the fewest trainable parameters among those within one standard error of the best.
    - Where noise cannot be judged (one seed) or nothing was confirmed, the baseline.

    Contenders without losses are ignored. The winner's finalists are in the order of their mean loss.
    """
    measured = [contender for contender in contenders if contender.losses]
    finalists = tuple(sorted((_finalist(contender, steps) for contender in measured), key=lambda each: each.loss))
    base = next((i for i, each in enumerate(measured) if each.proposal.candidate == baseline.candidate), None)

    def hand_over(proposal: Proposal, choice: Choice, reason: str) -> Winner:
        return Winner(
            candidate=proposal.candidate,
            role=proposal.role,
            trainable_parameters=proposal.trainable_parameters,
            choice=choice,
            reason=reason,
            baseline=baseline.candidate,
            baseline_parameters=baseline.trainable_parameters,
            finalists=finalists,
        )

    if not measured:
        return hand_over(
            baseline,
            Choice.BASELINE,
            "No candidate could be confirmed in the time there was, so full-depth LoRA is handed over.",
        )
    noise = Noise.of(measured)
    if noise.freedom == 0:
        return hand_over(
            baseline,
            Choice.BASELINE,
            "The candidates were confirmed on one seed only, which says nothing about noise, so full-depth LoRA is "
            "handed over.",
        )
    lost = ""
    if base is None:
        lost = "The full-depth baseline gave no result in confirmation. "
    else:
        rivals = [index for index in range(len(measured)) if index != base]
        needed = {index: _win_margin(noise, index, base, len(rivals)) for index in rivals}
        winners = [index for index in rivals if -noise.difference(index, base) > needed[index]]
        if winners:
            best = min(winners, key=lambda index: noise.means[index])
            return hand_over(
                measured[best].proposal,
                Choice.BEATS_BASELINE,
                f"{_named(measured[best].proposal.candidate)} reaches a validation loss of {noise.means[best]:.4f} "
                f"against {noise.means[base]:.4f} of tuned full-depth LoRA ({_seeds(measured)}, {steps} steps): "
                f"{-noise.difference(best, base):.4f} better, where chance explains up to {needed[best]:.4f} "
                f"(one-sided, 95 %, corrected for the best of {len(rivals)}). "
                f"{_share(measured[best].proposal, baseline)}",
            )
        if rivals:
            closest = min(rivals, key=lambda index: noise.means[index])
            lost = (
                f"No candidate beats tuned full-depth LoRA ({noise.means[base]:.4f} on validation, {_seeds(measured)}, "
                f"{steps} steps) beyond noise: the best differs by {noise.difference(closest, base):+.4f}, and "
                f"{-needed[closest]:+.4f} would be needed (one-sided, 95 %, corrected for the best of {len(rivals)}). "
            )
    best = int(np.argmin(noise.means))
    tolerance = {index: noise.quantile(ONE_SIGMA) * noise.standard_error(index, best) for index in range(len(measured))}
    within = [index for index in tolerance if noise.difference(index, best) <= tolerance[index]]
    smallest = min(within, key=lambda index: (measured[index].proposal.trainable_parameters, noise.means[index]))
    chosen = measured[smallest].proposal
    if smallest == base:
        return hand_over(
            chosen, Choice.BASELINE, f"{lost}Nothing smaller is within noise of the best, so it is handed over."
        )
    return hand_over(
        chosen,
        Choice.SMALLEST_WITHIN_NOISE,
        f"{lost}Handed over is the smallest within one standard error of the best: {_named(chosen.candidate)}, "
        f"{noise.means[smallest]:.4f} where the best has {noise.means[best]:.4f} (standard error of the difference "
        f"{tolerance[smallest]:.4f}). {_share(chosen, baseline)}",
    )


def _win_margin(noise: Noise, index: int, base: int, rivals: int) -> float:
    return noise.quantile(1 - FALSE_WIN_RATE / rivals) * noise.standard_error(index, base)


def _finalist(contender: Contender, steps: int) -> Finalist:
    return Finalist(
        candidate=contender.proposal.candidate,
        role=contender.proposal.role,
        trainable_parameters=contender.proposal.trainable_parameters,
        steps=steps,
        losses=tuple(contender.losses[seed] for seed in sorted(contender.losses)),
    )


def _named(candidate: Candidate) -> str:
    bands = " and ".join(map(str, candidate.bands))
    return f"the band {bands} (rank {candidate.rank}, {'+'.join(candidate.targets)})"


def _seeds(measured: Sequence[Contender]) -> str:
    counts = sorted({len(contender.losses) for contender in measured})
    return f"{counts[0]} seeds" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"


def _share(proposal: Proposal, baseline: Proposal) -> str:
    share = proposal.trainable_parameters / baseline.trainable_parameters
    return f"It trains {share:.0%} of the baseline's parameters."
