"""A run under way: taken up, planned, charged from the first model load to the release of the devices."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bandsearch.data.kept import keep
from bandsearch.engine.failures import LostEngineError
from bandsearch.engine.pool import EnginePool
from bandsearch.run.engines import larger_plan, measured_plan, start_engines
from bandsearch.run.job import Job, environment
from bandsearch.run.rest import ended_in_time, require_rest
from bandsearch.rundir import Events, Records, RunDirectory, disk_errors, require_disk
from bandsearch.search.search import searched
from bandsearch.values.environment import Environment
from bandsearch.values.errors import (
    BudgetError,
    DataError,
    DependencyError,
    InterruptedRunError,
    ModelError,
    SpaceError,
    UsageError,
)
from bandsearch.values.ledger import Ledger
from bandsearch.values.plan import Plan
from bandsearch.values.progress import Listener, Stop, Update
from bandsearch.values.spec import RunSpec

# What is wrong with what was asked for. After anything else, such as a full disk, the run can go on.
REFUSALS = (BudgetError, DataError, DependencyError, ModelError, SpaceError, UsageError)


@dataclass(frozen=True)
class Underway:
    """Its files, its engines, and what it may still spend."""

    home: RunDirectory
    job: Job
    ledger: Ledger
    pool: EnginePool
    plan: Plan
    listen: Listener
    stop: Stop

    def wall_left(self, *later: str) -> Callable[[], float]:
        """A clock of the wall seconds left once what the named later stages need is set aside."""
        if self.plan.wall_seconds is None:
            return lambda: float("inf")
        reserved = sum(self.plan.seconds_of(stage) for stage in (*later, "slack"))
        return lambda: self.ledger.wall_left - reserved

    def heed(self) -> None:
        """Raise InterruptedRunError once the person has asked to stop."""
        if self.stop():
            raise _stopped(self.home)


@contextmanager
def begun(path: Path, spec: RunSpec) -> Iterator[RunDirectory]:
    """The run's directory; taken away again where it is new and the run is refused before it has a plan."""
    home = RunDirectory.create(path, spec)
    try:
        yield home
    # Ctrl-C is one as long as nobody asks whether to stop.
    except (*REFUSALS, KeyboardInterrupt):
        if home.is_new and not home.plan.exists():
            home.discard()
        raise


@contextmanager
def opened(home: RunDirectory, job: Job, listen: Listener, stop: Stop) -> Iterator[Underway]:
    """Load and plan; charge everything from the first model load to the release of the devices."""
    with home, disk_errors(home.path), Ledger(home.ledger, job.devices, job.budget_seconds) as ledger:
        tell = _logged(home, ledger, listen)
        for note in job.dataset.notes:
            tell(Update(stage="load", message=note))
        home.write(home.environment, environment(job).going_on(home.read(home.environment, Environment), home.path))
        # Before anything is charged: of a large data set it takes longer than a small budget lasts.
        keep(job.dataset, home.data)
        known = home.read(home.plan, Plan)
        if known is not None:
            _require_rest(home, job, ledger, known)
        if stop():
            raise _stopped(home)
        with _resumable(home, stop), ExitStack() as stack:
            with ledger.stage("load"):
                pool = start_engines(job, tell, home.data, home.prefix, stop)
                # Where the disk is full no stage can be charged, and the devices are released all the same.
                stack.callback(pool.stop)
            try:
                finishing = 0.0 if known is None else _unfinished(home, known)
                with ended_in_time(job.wall_seconds, ledger.wall_left, finishing, pool):
                    with ledger.stage("plan"), pool.abandoned_once(stop):
                        plan = _plan(home, job, pool, ledger, known, tell)
                        pool.pack(plan.packing)
                    yield Underway(home, job, ledger, pool, plan, tell, stop)
            finally:
                with ledger.stage("close"):
                    pool.stop()


def _logged(home: RunDirectory, ledger: Ledger, listen: Listener) -> Listener:
    """`listen`, told what is spent as well; and all of it is in the run's log."""
    events = Events(home.events)

    def tell(update: Update) -> None:
        charged = {"spent": ledger.spent, "limit": ledger.limit, "devices": ledger.devices}
        update = update.model_copy(update=charged)
        events.append(update)
        listen(update)

    return tell


def _plan(home: RunDirectory, job: Job, pool: EnginePool, ledger: Ledger, known: Plan | None, listen: Listener) -> Plan:
    """The `known` one; a new one where there is none, or where the run has been given more and nothing is decided."""
    if known is None:
        plan = measured_plan(job, pool, listen, spent=lambda: ledger.spent / ledger.devices)
    elif _is_decided(home, known) or known.engines != pool.size or not _has_more(job, known):
        return known
    else:
        plan = larger_plan(job, known, confirming=known.compares and bool(searched(Records(home.trials))))
        if not known.compares:
            # What was being trained without a comparison is no end of a run that can have one.
            if home.winner.exists() and not _is_worth_it(plan, known, ledger):
                return known
            home.forget_winner()
    require_disk(home.path, plan.disk_bytes)
    home.write(home.plan, plan)
    for stage in plan.stages:
        listen(Update(stage="plan", message=f"{stage.name}: {stage.seconds:.0f} s, {stage.detail}"))
    if plan.advice:
        listen(Update(stage="plan", message=plan.advice))
    return plan


def _is_worth_it(plan: Plan, known: Plan, ledger: Ledger) -> bool:
    """Whether `plan` buys more than `known` one, which compares nothing, and there is still time for all of it."""
    rest = sum(map(plan.seconds_of, ("search", "confirm", "retrain", "evaluate")))
    return (plan.compares or plan.final_trainings > known.final_trainings) and ledger.wall_left >= rest


def _is_decided(home: RunDirectory, plan: Plan) -> bool:
    return home.winner.exists() if plan.compares else home.adapter.exists()


def _has_more(job: Job, plan: Plan) -> bool:
    return (job.wall_seconds or 0.0) > (plan.wall_seconds or math.inf)


def _unfinished(home: RunDirectory, plan: Plan) -> float:
    """Wall seconds that are planned for what has to follow the search."""
    stages = ("evaluate",) if home.adapter.exists() else ("retrain", "evaluate")
    return sum(map(plan.seconds_of, stages))


def _require_rest(home: RunDirectory, job: Job, ledger: Ledger, plan: Plan) -> None:
    """Refuse to go on where no adapter has been trained yet and too little is left for one."""
    if job.wall_seconds is None or any(home.full.glob("*/*.safetensors")):
        return
    stages = ["retrain", "evaluate"] if home.winner.exists() else ["confirm", "retrain", "evaluate"]
    require_rest(home.path, job.spec, plan, job.wall_seconds, ledger.wall_left, stages)


@contextmanager
def _resumable(home: RunDirectory, stop: Stop) -> Iterator[None]:
    """Say how to go on where an engine is lost; whoever asked to stop may have ended it."""
    try:
        yield
    except LostEngineError as error:
        if stop():
            raise _stopped(home) from error
        remedy = f"{error.remedy} Everything finished is saved; go on with `bandsearch resume {home.path}`."
        raise type(error)(error.message, remedy) from error


def _stopped(home: RunDirectory) -> InterruptedRunError:
    return InterruptedRunError(
        "Stopped; everything finished so far is saved.", f"Go on with `bandsearch resume {home.path}`."
    )
