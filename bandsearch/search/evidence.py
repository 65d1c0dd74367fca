"""The evidence of a confirmation: losses over several seeds, and how much of their differences is noise. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from scipy import stats

from bandsearch.search.noise import Noise, shared_differences
from bandsearch.search.proposal import Proposal
from bandsearch.values.spec import Objective

# One-sided chance of declaring any win where there is none.
FALSE_WIN_RATE = 0.05
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


@dataclass(frozen=True)
class Evidence:
    """What a decision knows. Contenders, each with a loss, go by their index, in `noise` too."""

    contenders: Sequence[Contender]
    baseline: Proposal
    aim: Aim
    noise: Noise

    @classmethod
    def of(cls, contenders: Sequence[Contender], baseline: Proposal, aim: Aim) -> Evidence | None:
        """None where noise cannot be judged."""
        noise = Noise.of([contender.losses for contender in contenders]) if contenders else None
        return None if noise is None or noise.freedom == 0 else cls(contenders, baseline, aim, noise)

    @property
    def base(self) -> int | None:
        """The tuned full-depth baseline; None where it gave no result."""
        found = (i for i, each in enumerate(self.contenders) if each.proposal.candidate == self.baseline.candidate)
        return next(found, None)

    @property
    def by_divergence(self) -> bool:
        """Whether it is the divergence from the base, not the size, that decides between equals."""
        return self.aim.objective is Objective.RETENTION

    def mean(self, index: int) -> float:
        return float(self.noise.means[index])

    def divergence(self, index: int) -> float:
        found = self.contenders[index].divergence
        return math.inf if found is None else found

    def best(self, among: Collection[int]) -> int:
        return min(among, key=self.mean)

    def preferred(self, among: Collection[int]) -> int:
        """Of equals the smallest, or the closest to the base."""

        def order(index: int) -> tuple[float, float]:
            size = self.contenders[index].proposal.trainable_parameters
            return self.divergence(index) if self.by_divergence else size, self.mean(index)

        return min(among, key=order)

    def unimportant(self, index: int) -> float:
        """A difference to this one that does not matter to whoever asked."""
        return self.aim.tolerance * abs(self.mean(index))

    def chance(self, index: int, base: int) -> float:
        """How much better than the baseline a rival may be by chance: the pooled noise, or the pair's own where that is
        larger (a shaky baseline)."""
        differences = shared_differences(self.contenders[index].losses, self.contenders[base].losses)
        own = float(stats.sem(differences)) if len(differences) > 1 else 0.0
        rivals = len(self.contenders) - 1
        return self.noise.quantile(1 - FALSE_WIN_RATE / rivals) * max(self.noise.standard_error(index, base), own)

    def winners(self, base: int) -> list[int]:
        """Who is ahead of the baseline by more than chance explains, and by as much as matters."""
        gains = {index: self.noise.difference(base, index) for index in range(len(self.contenders)) if index != base}
        least = self.unimportant(base)
        return [index for index, gain in gains.items() if gain > max(self.chance(index, base), least)]

    def equal_within(self, index: int, best: int) -> float:
        """The one-standard-error rule (Breiman et al. 1984). Student's t has no place in it: knowing the noise badly is
        no reason to take more for equal. With two seeds each the standard error is all of what a seed does, and too
        much would be handed over that is worse. What does not matter to whoever asked is tolerated besides."""
        noisy = min(self.noise.standard_error(index, best), MOST_TOLERATED * self.noise.sigma)
        return max(noisy, self.unimportant(best))

    def equals(self, best: int, among: Collection[int]) -> list[int]:
        """Who passes for equal to the best of them, itself included."""
        return [i for i in among if self.noise.difference(i, best) <= self.equal_within(i, best)]

    def is_beaten(self, index: int, best: int) -> bool:
        """Whether it is worse by more than chance explains (one-sided, 95 %) and the tolerance allows."""
        bound = self.noise.quantile(1 - FALSE_WIN_RATE) * self.noise.standard_error(index, best)
        return self.noise.difference(index, best) > max(bound, self.unimportant(best))
