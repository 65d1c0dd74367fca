"""The design of a table: what is trained, for how long, on how many seeds, and what that costs.

For every entry (a band with its rank and targets) at seed 0 all learning rates go to the first rung. At the habit's
rank and targets all of them go to the last rung and are trained in full, with the confirmation's decaying schedule: a
rate that is best after a few steps is often too low for a decaying one. The other ranks and targets take the rate that
was best in full on the same layers; with a constant alpha the best rate hardly depends on the rank. The best few of
every width, full depth, and one in eight whatever its loss get the other seeds; of the habit's the drawn ones and full
depth get them at every rate, since noise goes by it. The rates go up from the probe's best, which is that of a few
steps at full depth: on `swap` no band was best at 0.4 times it and three in five at 2.5 times. Who of the habit's is
clearly best at the lowest rate all the same is tried at lower ones, and other ranks and targets follow on the same
layers: a grid that ends at the best rate of some favours the others.
With the defaults and twelve layers:

    78 bands x 2 ranks x 2 targets, 15 pairs, 12 sets          = 339 entries, 105 of them the habit's
    105 at seed 0: 3 rates x (45 to the last rung + 135)       = 540 steps each,     56,700 steps
    234 at seed 0: 3 rates x 15 + 30 to rung 45 + 135 in full  = 210 steps each,     49,100 steps
    others: 11 widths x 2 + full depth x 4 + 4 best + 34 drawn = 64 entries at most
            13 drawn + full depth x 2 rates more               = 28 arms more
            2 seeds x (45 to the last rung + 135)              = 360 steps each,     33,100 steps
    lower rates, as measured: 26 to 347 arms, 108 on average x (45 + 135)            19,400 steps
    readings: 105 x 9 + 234 x 5 + 92 x 6, 128 examples, 3 steps each                  8,000 steps
                                                                           together 166,300 steps

A step of a packed candidate on one core takes 0.05 s (bands at the end) to 0.15 s (full depth), about 0.11 s on average
over all bands, with the 59 tokens of `two_step`, and 0.014 to 0.041 s, about 0.03 s on average, with the 12 to 18
tokens of the five other tasks. So `two_step` takes 18,300 core-seconds and each other task 5,000: 43,300 together, 6.0
hours on 2 quiet cores.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping

from pydantic import Field

from bandsearch.values.fidelity import Fidelity
from bandsearch.values.value import Value
from benchmarks.bandbench.entry import EQUAL, Entry, contiguous, ends, scattered


class Design(Value):
    """`rungs` and `full_steps` hold for a whole table; ranks, targets and seeds may be added to it later."""

    ranks: tuple[int, ...] = Field(default=(4, 16), min_length=1)
    targets: tuple[str, ...] = Field(default=("mlp", "all"), min_length=1)
    rate_factors: tuple[float, ...] = Field(default=(1.0, 2.5, 6.25), min_length=1)
    lower_factors: tuple[float, ...] = Field(default=(0.4, 0.16), description="for those that are best at the lowest")
    alpha: float = 32.0
    rungs: tuple[int, ...] = Field(default=(15, 45), min_length=1)
    full_steps: int = Field(default=135, ge=1)
    seeds: int = Field(default=3, ge=1)
    batch_size: int = Field(default=16, ge=1)
    validation_examples: int = Field(default=128, ge=1)
    set_widths: tuple[int, ...] = (3, 6, 9)
    sets_per_width: int = 4
    pairs: bool = Field(default=True, description="the first and the last layers together as well")
    full_rates: int = Field(default=3, ge=1, description="trained in full at the habit's rank and targets")
    survivors_per_width: int = 2
    survivors_beside: int = Field(default=4, description="the next best whatever their width")

    @property
    def habit(self) -> tuple[int, str]:
        """Rank and targets of the baselines, as the search has them."""
        targets = "all" if "all" in self.targets else self.targets[0]
        return sorted(self.ranks)[len(self.ranks) // 2], targets

    def is_habit(self, entry: Entry) -> bool:
        return (entry.rank, entry.targets) == self.habit

    def at_all_rates(self, entry: Entry, layer_count: int) -> bool:
        """Whether it gets the other seeds at every rate: what a seed does goes by the rate, and a high one that looks
        good on one seed breaks off on the next."""
        return self.is_habit(entry) and (entry.is_drawn or len(entry.layers) == layer_count)

    def entries(self, layer_count: int) -> list[Entry]:
        """The habit's bands first, so that a table that is not complete holds every band as early as possible."""
        choices = [(rank, targets) for targets in self.targets for rank in self.ranks]
        choices.sort(key=lambda choice: choice != self.habit)
        bands = [entry for rank, targets in choices for entry in contiguous(layer_count, rank, targets)]
        pairs = ends(layer_count, *self.habit) if self.pairs else []
        sets = [scattered(layer_count, width, self.sets_per_width, *self.habit) for width in self.set_widths]
        return list(dict.fromkeys([*bands, *pairs, *itertools.chain.from_iterable(sets)]))

    def trained_in_full(self, entry: Entry) -> int:
        """How many of its rates."""
        return min(self.full_rates, len(self.rate_factors)) if self.is_habit(entry) else 1

    def rates(self, best: float) -> tuple[float, ...]:
        """The rates that every entry is searched over, ascending; `best` is the probe's."""
        return _rates(best, sorted(self.rate_factors))

    def next_lower(self, entry: Entry, losses: Mapping[float, float], best: float) -> float | None:
        """The lower rate to try next, from full losses at seed 0 by rate; None where the lowest is not clearly best."""
        if not self.is_habit(entry) or len(losses) < max(2, self.trained_in_full(entry)):
            return None
        lowest, others = losses[min(losses)], sorted(losses)[1:]
        if lowest * (1 + EQUAL) >= min(losses[rate] for rate in others):
            return None
        return next((rate for rate in self.rates_below(best) if rate < min(losses)), None)

    def rates_below(self, best: float) -> tuple[float, ...]:
        """Those beside `rates` that some entries are tried at, descending; `best` is the lowest of `rates`."""
        return _rates(best, sorted(self.lower_factors, reverse=True))

    def proxy(self, seed: int) -> Fidelity:
        return Fidelity.proxy(
            self.rungs, batch_size=self.batch_size, seed=seed, validation_examples=self.validation_examples
        )

    def full(self, seed: int) -> Fidelity:
        return Fidelity.final(
            self.full_steps, batch_size=self.batch_size, seed=seed, validation_examples=self.validation_examples
        )

    def survivors(self, losses: dict[Entry, float], layer_count: int) -> list[Entry]:
        """Who gets the other seeds, from full losses at seed 0: full depth, some drawn, the best of every width, the
        next best."""
        ranked = sorted(losses, key=lambda entry: losses[entry])
        chosen = {entry: None for entry in ranked if len(entry.layers) == layer_count or entry.is_drawn}
        for width in range(1, layer_count):
            alike = [entry for entry in ranked if len(entry.layers) == width]
            chosen |= dict.fromkeys(alike[: self.survivors_per_width])
        others = [entry for entry in ranked if entry not in chosen]
        chosen |= dict.fromkeys(others[: self.survivors_beside])
        return sorted(chosen, key=lambda entry: (entry.start, entry.bands, entry.rank, entry.targets))


def _rates(best: float, factors: Iterable[float]) -> tuple[float, ...]:
    return tuple(float(f"{best * factor:.4g}") for factor in factors)
