"""The arms that bandsearch is compared with, played on a table: from scratch, at full fidelity unless they halve."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable, Iterator

import optuna
from optuna.samplers import BaseSampler, GPSampler, TPESampler
from optuna.trial import TrialState

from bandsearch.search.baselines import MID_BLOCK
from bandsearch.search.candidates import split_targets
from bandsearch.search.halving import Halving
from bandsearch.values.band import Band
from bandsearch.values.candidate import Candidate
from benchmarks.bandbench.autopeft import AutoPeft
from benchmarks.bandbench.table import Table
from benchmarks.bandbench.world import World

# What an arm would hand over after so many device seconds, whenever that changes or is confirmed.
Path = list[tuple[float, int]]
Arm = Callable[[World, float], Path]
# All trainings of an arm are on one seed, so that it compares candidates and not seeds.
SEED = 0


def random_search(world: World, horizon: float) -> Path:
    source = random.Random(f"random search {world.seed}")
    return _in_full(world, horizon, iter(lambda: _drawn(world.table, source), None))


def optuna_tpe(world: World, horizon: float) -> Path:
    return _optuna(world, horizon, TPESampler(seed=world.seed))


def optuna_gp(world: World, horizon: float) -> Path:
    return _optuna(world, horizon, GPSampler(seed=world.seed))


def asha(world: World, horizon: float) -> Path:
    """Random candidates, halved at every rung; the furthest and best is handed over."""
    table, source = world.table, random.Random(f"asha {world.seed}")
    rungs = (*table.header.rungs, table.header.full_steps)
    halving = Halving(rungs)
    path: Path = []
    spent, best = 0.0, (math.inf, math.inf)
    while spent < horizon:
        candidate = _drawn(table, source)
        option, before = world.nearest(candidate), 0
        for column, steps in enumerate(rungs):
            # What was trained at a constant rate does not go on decaying: the last rung is a training of its own.
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
    return _tuned(world, horizon, Band.between(*MID_BLOCK, world.table.layer_count))


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
    rates = rate_ends(table)
    path: Path = []
    spent, best = 0.0, math.inf
    while spent < horizon:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trial = study.ask()
            candidate = _candidate(
                table,
                trial.suggest_float("start", 0, 1),
                trial.suggest_int("width", 1, table.layer_count),
                trial.suggest_categorical("rank", table.ranks),
                trial.suggest_categorical("targets", table.targets),
                trial.suggest_float("rate", *rates, log=True),
            )
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
    rank, targets = world.table.habit
    candidates = [_on(world.table, band, rank, targets, rate) for rate in world.table.header.rates]
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


def rate_ends(table: Table) -> tuple[float, float]:
    """Half a grid step beyond the table's rates, so that every rate is the nearest one of an equal share."""
    rates = table.header.rates
    step = math.sqrt(rates[1] / rates[0]) if len(rates) > 1 else 1.0
    return rates[0] / step, rates[-1] * step


def _drawn(table: Table, source: random.Random) -> Candidate:
    low, high = rate_ends(table)
    return _candidate(
        table,
        source.random(),
        source.randint(1, table.layer_count),
        source.choice(table.ranks),
        source.choice(table.targets),
        math.exp(source.uniform(math.log(low), math.log(high))),
    )


def _candidate(table: Table, place: float, width: int, rank: int, targets: str, rate: float) -> Candidate:
    """`place` in [0, 1] among the starts that the width leaves, as the search has it."""
    room = table.layer_count - width
    start = min(int(place * (room + 1)), room)
    return _on(table, Band(start=start, stop=start + width), rank, targets, rate)


def _on(table: Table, band: Band, rank: int, targets: str, rate: float) -> Candidate:
    return Candidate(
        bands=(band,), rank=rank, alpha=table.header.alpha, targets=split_targets(targets), learning_rate=rate
    )
