"""Replays: every arm on every table, as often as asked for or as the time allows."""

from __future__ import annotations

import functools
import math
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from bandsearch.search.proposer import Sampler
from bandsearch.values.value import Value
from benchmarks.bandbench.arms import ARMS
from benchmarks.bandbench.ours import bandsearch, misleading, record_of
from benchmarks.bandbench.probes import LADDER
from benchmarks.bandbench.table import Table, load_table
from benchmarks.bandbench.world import World

OURS, NULL = "bandsearch", "bandsearch, nothing to win"
# With the atlas of a model on which the next task's search has been run, or of one that recommends the worst.
SECOND, MISLED = "bandsearch, second task", "bandsearch, misled"
# What its parts are worth, and what a person may ask for.
RANDOMLY, BLIND, TOLERANT = "bandsearch, random proposals", "bandsearch, no probe's bands", "bandsearch, 5 % tolerated"
# All arms are given the table's learning rates; a run whose space names none goes by its probe.
OWN_RATES = "bandsearch, rates of its probe"
VARIANTS: dict[str, dict[str, Any]] = {
    RANDOMLY: {"sampler": Sampler.RANDOM},
    BLIND: {"probed": False},
    TOLERANT: {"tolerance": 0.05},
    OWN_RATES: {"own_rates": True},
}
# Of bandsearch's budgets, the one whose hand-over is reported and the one that is judged for false wins. What is handed
# over depends on the budget, so every budget is a run of its own. With an atlas up to the reported one.
HEADLINE, NULL_BUDGET = 1 / 50, 1 / 25
# How long the others go on in the first replays, where curves are shown, and in the rest, up to where arms are judged.
# The dearer an arm's own thinking, the shorter, so that replays take seconds.
HORIZON, HORIZONS = 1 / 5, {"AutoPEFT-style": 1 / 16, "Optuna GP": 1 / 30}
JUDGED = 1 / 25
# What takes seconds a replay is played so often: this arm, and everything above what is judged.
DEAREST, FEW = "Optuna GP", 8


class Step(Value):
    """What is handed over after `seconds` of a device. `budget` and `choice` are bandsearch's own."""

    seconds: float
    option: int
    budget: float = 0.0
    choice: str = ""


class Played(Value):
    """One arm on one draw of a table. `horizon`: device seconds after which it was no longer looked at."""

    task: str
    arm: str
    seed: int
    horizon: float
    steps: tuple[Step, ...]


def play(table: Table, arm: str, seed: int, other: Table | None = None) -> Played:
    """`other` is the task that the atlas knows."""
    exhaustive = table.exhaustive_seconds
    if arm in ARMS:
        longest = HORIZONS.get(arm, HORIZON)
        horizon = (longest if seed < FEW else min(JUDGED, longest)) * exhaustive
        path = ARMS[arm](World(table, seed), horizon)
        steps = [Step(seconds=seconds, option=option) for seconds, option in path]
    else:
        affordable = tuple(share for share in LADDER if share <= NULL_BUDGET or seed < FEW)
        special = {OURS: affordable, NULL: (NULL_BUDGET,)} | dict.fromkeys(VARIANTS, (HEADLINE,))
        budgets = special.get(arm, LADDER[: LADDER.index(HEADLINE) + 1])
        horizon, steps = budgets[-1] * exhaustive, []
        for share in budgets:
            world, budget = World(table, seed, null=arm == NULL), share * exhaustive
            prior = misleading(table) if arm == MISLED else record_of(other, table, budget) if other is not None else ()
            found = bandsearch(world, budget, prior=prior, **VARIANTS.get(arm, {}))
            if found is not None:
                steps.append(Step(seconds=found.seconds, option=found.option, budget=share, choice=found.choice))
    return Played(task=table.header.task, arm=arm, seed=seed, horizon=horizon, steps=tuple(steps))


def replay(
    folder: Path, tasks: Sequence[str], replays: int, *, null_tasks: Iterable[str], null_replays: int, minutes: float
) -> list[Played]:
    """In processes of their own, one per core. After `minutes` nothing new is begun; the dearest arm comes last."""
    until = time.monotonic() + 60 * minutes
    work = _work(tasks, replays, tuple(null_tasks), null_replays)
    workers = len(os.sched_getaffinity(0))
    played: list[Played] = []
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as processes:
        running: set[Future[Played]] = set()
        while True:
            while len(running) < 2 * workers and time.monotonic() < until and (job := next(work, None)) is not None:
                running.add(processes.submit(_play, folder, tuple(tasks), *job))
            if not running:
                return sorted(played, key=lambda each: (each.task, each.arm, each.seed))
            done, running = wait(running, return_when=FIRST_COMPLETED)
            played += [future.result() for future in done]


def _work(
    tasks: Sequence[str], replays: int, null_tasks: Sequence[str], null_replays: int
) -> Iterator[tuple[str, str, int]]:
    own = (OURS, MISLED, *VARIANTS) if len(tasks) < 2 else (OURS, MISLED, SECOND, *VARIANTS)
    cheap = [arm for arm in ARMS if arm != DEAREST]
    # In step, so that where time runs out both have their share.
    steps = max(1, replays)
    for step in range(steps):
        if step < replays:
            yield from ((task, arm, step) for task in tasks for arm in (*own, *cheap))
        nulls = range(step * null_replays // steps, (step + 1) * null_replays // steps)
        yield from ((task, NULL, seed) for seed in nulls for task in null_tasks)
    for seed in range(min(replays, FEW)):
        yield from ((task, DEAREST, seed) for task in tasks)


@functools.lru_cache(maxsize=16)
def _table(folder: Path, task: str) -> Table:
    table = load_table(folder, task)
    assert table is not None
    return table


def _play(folder: Path, tasks: tuple[str, ...], task: str, arm: str, seed: int) -> Played:
    others = [each for each in tasks if each != task]
    return play(_table(folder, task), arm, seed, _table(folder, others[seed % len(others)]) if arm == SECOND else None)


def reached(played: Played, table: Table, until: float = math.inf, most_parameters: float = math.inf) -> float | None:
    """Device seconds after which what is handed over stays within seed noise of the optimum, and has no more than
    `most_parameters`, up to `until` (device seconds); None: never in sight. Arms are compared up to the same time: who
    is looked at for longer has longer to fall out of sight again."""
    steps = [step for step in played.steps if step.seconds <= until * (1 + 1e-9)]

    def is_outside(option: int) -> bool:
        return table.regret(option) > table.noise or table.options[option].parameters > most_parameters

    outside = [index for index, step in enumerate(steps) if is_outside(step.option)]
    first = outside[-1] + 1 if outside else 0
    return steps[first].seconds if first < len(steps) else None


def at(played: Played, seconds: float) -> Step | None:
    """What the arm would have handed over by then; None before its first."""
    known = [step for step in played.steps if step.seconds <= seconds]
    return known[-1] if known else None


def headline(played: Played, until: float) -> Step | None:
    """Of bandsearch, at the budget that is reported or the smallest that paid for a run; of the others, the last up to
    `until`, device seconds."""
    if played.arm not in (OURS, SECOND, MISLED, *VARIANTS):
        return at(played, until * (1 + 1e-9))
    return next((step for step in played.steps if step.budget >= HEADLINE or math.isclose(step.budget, HEADLINE)), None)
