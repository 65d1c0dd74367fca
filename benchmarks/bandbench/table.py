"""A table: what every candidate of a task comes to, with the noise of its seeds. Built by `build`, read here.

A loss is taken apart as in the decision: entry + seed + noise. The noise of a training is kept over all its readings,
since one that is ahead at a rung is more often ahead in the end. Two things are filled in, both so that they are not
better than what was trained: a rate that was not trained in full keeps the distance that it has on the same layers at
the habit's rank and targets (or its own at the first rung), and an entry on one seed has that seed's loss. Where
entries end is shrunk by what is noise in it. The optimum is the best entry that a search can find of those on all
seeds: a band, in two pieces too where the table holds pairs of first and last layers.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bandsearch.adapters.lora import trainable_parameters
from bandsearch.values.candidate import Candidate
from bandsearch.values.profile import SensitivityProfile
from benchmarks.bandbench.clock import Clock
from benchmarks.bandbench.entry import Entry, best_rate
from benchmarks.bandbench.estimates import Losses, effects_of, filled_in, gap_of, residuals_of, shrunk_centres
from benchmarks.bandbench.probes import Probes, load_probes
from benchmarks.bandbench.residuals import Array
from benchmarks.bandbench.rows import Header, Row, Rows


@dataclass(frozen=True)
class Option:
    """An entry at one of its rates. `seeds`: on how many it was trained in full; 0: filled in."""

    entry: Entry
    candidate: Candidate
    parameters: int
    seeds: int


@dataclass(frozen=True, eq=False)
class Table:
    """`centres`, where trainings usually end, and `means` have a row per option and a column per rung and, last, for
    full training; infinite where it diverged.

    `effects` are what stored seeds do to all entries, `residuals` by option what trainings like it end above its mean.
    Both have the columns of `means`. `spreads`, by option, are the standard deviations of full losses that do not break
    off.

    `read` and `constant` are what signals are judged by, losses of seed 0 as they were read, with the columns of
    `means` and NaN where nothing was: with the search's proxies, and at a constant rate where such were trained.
    """

    header: Header
    profile: SensitivityProfile
    options: tuple[Option, ...]
    centres: Array
    means: Array
    read: Array
    constant: Array
    effects: Array
    residuals: tuple[Array, ...]
    spreads: tuple[float, ...]
    clock: Clock
    exhaustive_seconds: float
    edge_share: float
    probes: Probes

    def profile_within(self, seconds: float) -> SensitivityProfile:
        """What the probe of a run with a budget of so many device seconds finds."""
        if not self.probes:
            return self.profile
        paid = [share for share in self.probes if share * self.exhaustive_seconds <= seconds * (1 + 1e-9)]
        return self.probes[max(paid, default=min(self.probes))]

    @property
    def layer_count(self) -> int:
        return self.header.layout.layer_count

    @functools.cached_property
    def full(self) -> Array:
        return np.asarray(self.means[:, -1])

    @functools.cached_property
    def noise(self) -> float:
        """Standard deviation of the loss of a full training over seeds, seed effects taken out: the median over the
        entries on more than one seed at their own rates; 0 on one seed. Without trainings that break off: they are
        counted in the means, and make nothing else as good as the best."""
        spreads = [self.spreads[index] for index in self.own if self.options[index].seeds > 1]
        return statistics.median(known) if (known := [each for each in spreads if math.isfinite(each)]) else 0.0

    def noise_like(self, option: int) -> Array:
        """What trainings like its own end above its mean, of shape (trainings, columns), without a row where nothing
        was trained on two seeds."""
        return self.residuals[option]

    @functools.cached_property
    def own(self) -> tuple[int, ...]:
        """Of every entry the option at its own rate."""
        by_entry: dict[Entry, dict[float, int]] = {}
        for index, option in enumerate(self.options):
            by_entry.setdefault(option.entry, {})[option.candidate.learning_rate] = index
        own = (
            known[_own_rate({rate: (self.options[index].seeds, self.full[index]) for rate, index in known.items()})]
            for known in by_entry.values()
        )
        return tuple(sorted(own))

    @functools.cached_property
    def splits(self) -> bool:
        """Whether bands in two pieces are searched."""
        return any(option.entry.is_ends(self.layer_count) for option in self.options)

    @functools.cached_property
    def searchable(self) -> tuple[int, ...]:
        """The options that a search can find."""
        pieces = 2 if self.splits else 1
        return tuple(i for i, option in enumerate(self.options) if len(option.entry.bands) <= pieces)

    @functools.cached_property
    def optimum(self) -> int:
        """The best entry that can be searched, of those on the most seeds."""
        return self._best(self.searchable)

    @functools.cached_property
    def best_band(self) -> int:
        """The best run of neighbouring layers, likewise."""
        return self._best([i for i, option in enumerate(self.options) if option.entry.is_band])

    @functools.cached_property
    def best_set(self) -> int | None:
        """The best of the random sets of layers that are no single band; None where there are none."""
        sets = [i for i, option in enumerate(self.options) if not option.entry.is_band]
        sets = [i for i in sets if not self.options[i].entry.is_ends(self.layer_count)]
        return self._best(sets) if sets else None

    def _best(self, alike: Sequence[int]) -> int:
        most = max(self.options[index].seeds for index in alike)
        return min((i for i in alike if self.options[i].seeds == most), key=lambda index: self.full[index])

    @functools.cached_property
    def smallest(self) -> int:
        """Of the entries that are not worse than full depth by more than an SD, the one with the fewest parameters."""
        bound = self.full[self.full_depth] + self.noise
        alike = [i for i in self.own if self.full[i] <= bound and len(self.options[i].entry.bands) <= 2]
        return min(alike, key=lambda index: (self.options[index].parameters, self.full[index]))

    def regret(self, option: int) -> float:
        """What its full training ends above the optimum's, without noise; never below 0, for sets of layers either."""
        return max(0.0, float(self.full[option] - self.full[self.optimum]))

    @functools.cached_property
    def full_depth(self) -> int:
        """The best option that adapts every layer."""
        every = [index for index, option in enumerate(self.options) if len(option.entry.layers) == self.layer_count]
        return min(every, key=lambda index: self.full[index])

    @functools.cached_property
    def rates(self) -> tuple[float, ...]:
        """All that anything was tried at, ascending; the header's, and lower ones where those were best."""
        return tuple(sorted({option.candidate.learning_rate for option in self.options}))

    @functools.cached_property
    def ranks(self) -> tuple[int, ...]:
        return tuple(sorted({option.entry.rank for option in self.options}))

    @functools.cached_property
    def targets(self) -> tuple[str, ...]:
        return tuple(sorted({option.entry.targets for option in self.options}))

    @functools.cached_property
    def habit(self) -> tuple[int, str]:
        """Rank and targets of the search's baselines."""
        return self.ranks[len(self.ranks) // 2], "all" if "all" in self.targets else self.targets[0]

    @functools.cached_property
    def habit_parameters(self) -> int:
        """Of full-depth LoRA as everybody trains it."""
        entry = Entry(bands=((0, self.layer_count),), rank=self.habit[0], targets=self.habit[1])
        return trainable_parameters(entry.candidate(1.0, self.header.alpha), self.header.layout)

    def seconds(self, option: int, steps: int) -> float:
        """Device seconds of `steps` steps."""
        return steps * self.clock.seconds(self.options[option].entry)


def load_table(folder: Path, task: str) -> Table | None:
    """None where there is none, or too little of one: full depth and a profile are needed."""
    rows, profile = Rows(folder / f"{task}.jsonl"), folder / f"{task}.profile.json"
    header = rows.header
    if header is None or not profile.exists():
        return None
    whole = SensitivityProfile.model_validate_json(profile.read_text())
    return table_of(header, whole, rows.read(), load_probes(folder, task))


def table_of(
    header: Header, profile: SensitivityProfile, rows: Sequence[Row], probes: Probes | None = None
) -> Table | None:
    """Without `probes` runs of every budget have `profile`."""
    columns = (*header.rungs, header.full_steps)
    proxies: dict[tuple[Entry, float], dict[int, Row]] = {}
    whole: Losses = {}
    for row in rows:
        if row.kind == "proxy":
            proxies.setdefault((row.entry, row.rate), {})[row.seed] = row
    for row in rows:
        proxy = proxies.get((row.entry, row.rate), {}).get(row.seed)
        if row.kind == "full" and row.readings and proxy is not None:
            losses = [loss for _, loss, _ in (*proxy.readings, *row.readings)]
            if len(losses) == len(columns) and all(map(math.isfinite, losses)):
                whole.setdefault((row.entry, row.rate), {})[row.seed] = np.array(losses)
    whole = {arm: by_seed for arm, by_seed in whole.items() if 0 in by_seed}
    if not any(len(entry.layers) == header.layout.layer_count for entry, _ in whole):
        return None
    effects, fair = effects_of(whole, header.layout.layer_count)
    residuals = residuals_of(fair, len(columns))
    shrunk = shrunk_centres(fair, residuals, header.layout.layer_count)
    broken = {(row.entry, row.rate) for row in rows if row.kind == "full" and row.seed == 0 and not row.readings}
    ends: dict[Entry, dict[float, tuple[int, float]]] = {}
    for (entry, rate), by_seed in whole.items():
        centre = shrunk[entry, rate]
        mean = _mean(residuals.outcomes(rate, centre), centre)
        ends.setdefault(entry, {})[rate] = (len(by_seed), float(mean[-1]))
    best = {entry: _own_rate(known) for entry, known in ends.items()}
    siblings: dict[tuple[tuple[int, int], ...], list[Entry]] = {}
    for entry in best:
        siblings.setdefault(entry.bands, []).append(entry)
    options, centres = [], []
    for (entry, rate), by_seed in proxies.items():
        if entry not in best or 0 not in by_seed:
            continue
        candidate = entry.candidate(rate, header.alpha)
        parameters = trainable_parameters(candidate, header.layout)
        options.append(Option(entry, candidate, parameters, len(whole.get((entry, rate), ()))))
        if not by_seed[0].readings or (entry, rate) in broken:
            centres.append(np.full(len(columns), math.inf))
        elif (entry, rate) in whole:
            centres.append(shrunk[entry, rate])
        else:
            gap = gap_of(shrunk, siblings[entry.bands], rate, best[entry])
            best_row = proxies[entry, best[entry]][0]
            centres.append(filled_in(by_seed[0], best_row, shrunk[entry, best[entry]], gap, effects[0]))
    outcomes = [
        residuals.outcomes(option.candidate.learning_rate, centre)
        for option, centre in zip(options, centres, strict=True)
    ]
    means = [_mean(pool, centre) for pool, centre in zip(outcomes, centres, strict=True)]
    tried: dict[Entry, list[float]] = {}
    for entry, rate in proxies:
        tried.setdefault(entry, []).append(rate)
    at_edge = [len(tried[entry]) > 1 and rate in (min(tried[entry]), max(tried[entry])) for entry, rate in best.items()]
    clock = _clock(header, rows)
    return Table(
        header=header,
        profile=profile,
        options=tuple(options),
        centres=np.array(centres),
        means=np.array(means),
        read=_as_read(rows, "proxy", options, len(columns)),
        constant=_as_read(rows, "constant", options, len(columns)),
        effects=np.array(list(effects.values())),
        residuals=tuple(pool - mean for pool, mean in zip(outcomes, means, strict=True)),
        spreads=tuple(
            residuals.spread(option.candidate.learning_rate, centre)
            for option, centre in zip(options, centres, strict=True)
        ),
        clock=clock,
        exhaustive_seconds=sum(
            row.readings[-1][0] * clock.seconds(row.entry) for row in rows if row.readings and row.kind != "constant"
        ),
        edge_share=sum(at_edge) / len(at_edge),
        probes=probes or {},
    )


def _mean(outcomes: Array, centre: Array) -> Array:
    """Without outcomes the centre."""
    return np.asarray(outcomes.mean(axis=0)) if len(outcomes) else centre


def _as_read(rows: Sequence[Row], kind: str, options: Sequence[Option], columns: int) -> Array:
    known = {row.key: row for row in rows if row.seed == 0}
    read = np.full((len(options), columns), math.nan)
    for index, option in enumerate(options):
        proxy, full = (known.get((option.entry, option.candidate.learning_rate, 0, each)) for each in (kind, "full"))
        for column, (_, loss, _) in enumerate(proxy.readings if proxy else ()):
            read[index, column] = loss
        if full is not None and full.readings:
            read[index, -1] = full.readings[-1][1]
    return read


def _own_rate(ends: Mapping[float, tuple[int, float]]) -> float:
    """From (seeds, full loss) by rate: of those on the most seeds the lowest rate whose loss is equal to the best."""
    most = max(seeds for seeds, _ in ends.values())
    return best_rate({rate: loss for rate, (seeds, loss) in ends.items() if seeds == most})


def _clock(header: Header, rows: Sequence[Row]) -> Clock:
    timed = [row for row in rows if row.readings]
    seconds = [row.readings[-1][2] / row.readings[-1][0] for row in timed]
    return Clock.of(header.layout, [row.entry for row in timed], seconds)
