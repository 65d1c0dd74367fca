"""The arms that bandsearch is compared with, played on a table: from scratch, at full fidelity unless they halve."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, GPSampler, TPESampler
from optuna.trial import TrialState

from bandsearch.search.candidates import split_targets
from bandsearch.search.halving import Halving
from bandsearch.values.band import Band
from bandsearch.values.candidate import Candidate
from benchmarks.bandbench.autopeft import AutoPeft
from benchmarks.bandbench.space import code_of
from benchmarks.bandbench.table import Table
from benchmarks.bandbench.world import World

# What an arm would hand over after so many device seconds, whenever that changes or is confirmed.
Path = list[tuple[float, int]]
Arm = Callable[[World, float], Path]
# All trainings of an arm are on one seed, so that it compares candidates and not seeds.
SEED = 0


def random_search(world: World, horizon: float) -> Path:
    return _in_full(world, horizon, _drawn(world.table, f"random search {world.seed}"))


def optuna_tpe(world: World, horizon: float) -> Path:
    return _optuna(world, horizon, TPESampler(seed=world.seed))


def optuna_gp(world: World, horizon: float) -> Path:
    return _optuna(world, horizon, GPSampler(seed=world.seed))


def asha(world: World, horizon: float) -> Path:
    """Random candidates, halved at every rung; the furthest and best is handed over."""
    table, drawn = world.table, _drawn(world.table, f"asha {world.seed}")
    rungs = (*table.header.rungs, table.header.full_steps)
    halving = Halving(rungs)
    path: Path = []
    spent, best = 0.0, (math.inf, math.inf)
    while spent < horizon:
        candidate = next(drawn)
        option, before = world.nearest(candidate), 0
        for column, steps in enumerate(rungs):
            # A proxy's rate has decayed by its last rung: the full training is one of its own.
            spent += table.seconds(option, steps - (before if column < len(rungs) - 1 else 0))
            before = steps
            loss = world.loss(candidate, column, SEED)
            if not math.isfinite(loss):
                break
            if (-column, loss) < best:
                best = (-column, loss)
                path.append((spent, option))
            if not halving.decide("all", column, loss).keep:
                break
    return path


def mid_block(world: World, horizon: float) -> Path:
    return _tuned(world, horizon, Band.middle(world.table.layer_count))


def full_depth(world: World, horizon: float) -> Path:
    return _tuned(world, horizon, Band.full(world.table.layer_count))


def stable_layers(world: World, horizon: float) -> Path:
    """Half of the depth where the probe's short run changed the hidden states least (arXiv 2604.11838: highest CKA)."""
    return _tuned(world, horizon, most_stable(world.table))


def most_stable(table: Table) -> Band:
    count = table.layer_count
    cka = {view.layer: view.cka for view in table.profile.views}
    width = max(1, count // 2)
    bands = [Band(start=start, stop=start + width) for start in range(count - width + 1)]
    return max(bands, key=lambda band: (sum(cka.get(layer, 0.0) for layer in band.layers), -band.start))


def autopeft(world: World, horizon: float) -> Path:
    """Layers on or off, rank and targets by multi-objective Bayesian optimisation (arXiv 2301.12132)."""
    table = world.table
    search = AutoPeft(table, world.seed)
    path: Path = []
    spent, best = 0.0, math.inf
    while spent < horizon and (option := search.ask()) is not None:
        loss = world.loss(table.options[option].candidate, -1, SEED)
        spent += table.seconds(option, table.header.full_steps)
        search.tell(option, loss)
        if loss < best:
            best = loss
            path.append((spent, option))
    return path


ARMS: dict[str, Arm] = {
    "random search": random_search,
    "Optuna TPE": optuna_tpe,
    "Optuna GP": optuna_gp,
    "ASHA": asha,
    "20–80 % of depth": mid_block,
    "full depth": full_depth,
    "most stable layers": stable_layers,
    "AutoPEFT-style": autopeft,
}


def _optuna(world: World, horizon: float, sampler: BaseSampler) -> Path:
    table = world.table
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=sampler)
    code = code_of(table)
    path: Path = []
    spent, best = 0.0, math.inf
    while spent < horizon:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trial = study.ask(code.distributions)
        candidate = code.decode(trial.params)
        option, loss = world.nearest(candidate), world.loss(candidate, -1, SEED)
        spent += table.seconds(option, table.header.full_steps)
        if math.isfinite(loss):
            study.tell(trial, loss)
        else:
            study.tell(trial, state=TrialState.FAIL)
        if loss < best:
            best = loss
            path.append((spent, option))
    return path


def _tuned(world: World, horizon: float, band: Band) -> Path:
    """At the probe's best rate first, then at those nearest to it, lower ones before higher ones."""
    table, (rank, targets) = world.table, world.table.habit
    best = math.log(table.header.rates[0])
    rates = sorted(table.rates, key=lambda rate: (round(abs(math.log(rate) - best), 2), rate))
    candidates = [_on(table, band, rank, targets, rate) for rate in rates]
    return _in_full(world, horizon, iter(candidates))


def _in_full(world: World, horizon: float, candidates: Iterator[Candidate]) -> Path:
    """Train one after the other in full; the lowest loss is handed over."""
    table = world.table
    path: Path = []
    spent, best = 0.0, math.inf
    while spent < horizon and (candidate := next(candidates, None)) is not None:
        option, loss = world.nearest(candidate), world.loss(candidate, -1, SEED)
        spent += table.seconds(option, table.header.full_steps)
        if loss < best:
            best = loss
            path.append((spent, option))
    return path


def _drawn(table: Table, seed: str) -> Iterator[Candidate]:
    """Uniformly in the parameters of the search space, for ever."""
    source, code = random.Random(seed), code_of(table)
    while True:
        params = {name: _value(each, source.random()) for name, each in code.distributions.items()}
        yield code.decode(params)


def _value(distribution: BaseDistribution, share: float) -> Any:
    """What lies at `share` of the way, in [0, 1), through all values."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[int(share * len(distribution.choices))]
    if isinstance(distribution, IntDistribution):
        return distribution.low + int(share * (distribution.high - distribution.low + 1))
    assert isinstance(distribution, FloatDistribution)
    low, high = distribution.low, distribution.high
    return low * (high / low) ** share if distribution.log else low + share * (high - low)


def _on(table: Table, band: Band, rank: int, targets: str, rate: float) -> Candidate:
    return Candidate(
        bands=(band,), rank=rank, alpha=table.header.alpha, targets=split_targets(targets), learning_rate=rate
    )
