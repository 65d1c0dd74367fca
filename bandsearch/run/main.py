"""The main flow: probe, search, confirm, retrain, export, evaluate, report. It reads from top to bottom."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bandsearch.data.kept import keep
from bandsearch.engine.failures import LostEngineError
from bandsearch.engine.pool import EnginePool
from bandsearch.engine.team import form_teams
from bandsearch.probe.probe import ProbeSettings, run_probe
from bandsearch.run.engines import larger_plan, measured_plan, start_engines
from bandsearch.run.evaluating import spare_evaluation
from bandsearch.run.handover import evaluate_arms, export_winner, settle
from bandsearch.run.job import Job, default_directory, environment, prepare_job
from bandsearch.run.outcome import RunOutcome, outcome_of
from bandsearch.run.planning import final_steps
from bandsearch.run.prior import prior_of
from bandsearch.run.publish import publish
from bandsearch.run.record import leave_record
from bandsearch.run.rest import ended_in_time, enlarged, require_rest
from bandsearch.run.retrain import full_fidelity, retrain
from bandsearch.run.words import agreed
from bandsearch.rundir import Events, Records, RunDirectory, disk_errors, require_disk
from bandsearch.search.confirm import confirm
from bandsearch.search.correlation import signals
from bandsearch.search.decision import Aim
from bandsearch.search.search import run_search, searched
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
from bandsearch.values.evaluation import Arm, Evaluation, Winner
from bandsearch.values.ledger import Ledger
from bandsearch.values.plan import Plan
from bandsearch.values.profile import SensitivityProfile
from bandsearch.values.progress import Listener, Stop, Update, never, silent
from bandsearch.values.spec import RunSpec

# Where the engines keep prefix states: by far the largest part of a run, and of no use after it.
PREFIX = "prefix"
# What is being scored is waited for so long once the person has asked to stop, seconds; lm-eval's tasks take longer.
PART_PATIENCE = 5.0
# What is wrong with what was asked for. After anything else, such as a full disk, the run can go on.
REFUSALS = (BudgetError, DataError, DependencyError, ModelError, SpaceError, UsageError)


def run(spec: RunSpec, directory: Path | None = None, listen: Listener = silent, stop: Stop = never) -> RunOutcome:
    """Do the whole job in `directory` (default: a new one under `results/`), or go on with it where it stands.

    `stop` is asked between steps; once it is true the run saves what it has and raises InterruptedRunError. Raises a
    BandsearchError for anything a person can mend; nothing is left half-written.
    """
    job = prepare_job(spec, known=_known(directory))
    with _begun(directory or default_directory(spec, job.source), job.spec) as home:
        return _complete(home, job, listen, stop)


def resume(directory: Path, listen: Listener = silent, stop: Stop = never, budget: str | None = None) -> RunOutcome:
    """Go on with the run in `directory`: what is finished is kept, what was under way is done again.

    `budget`: all that it may spend from now on, more than before. As long as no winner is chosen the plan is made anew
    with it; afterwards the final training gets longer if it has not begun. Raises BudgetError for one that is no more.
    """
    home = RunDirectory.open(directory)
    known, is_complete = home.read_spec(), home.evaluation.exists()
    spec = known if budget is None else enlarged(known, budget)
    if spec != known and is_complete:
        raise BudgetError(f"The run in {directory} is complete.", "Start another with --budget, in a new directory.")
    job = prepare_job(spec, hold=not is_complete, known=home.data)
    if spec != known:
        with home:
            home.write_spec(spec)
    return _complete(home, job, listen, stop)


def search(
    spec: RunSpec, directory: Path | None = None, listen: Listener = silent, stop: Stop = never
) -> tuple[Path, Winner]:
    """Probe, search and confirm, without the final training; `resume` does the rest from what stays reserved for it."""
    job = prepare_job(spec, known=_known(directory))
    with (
        _begun(directory or default_directory(spec, job.source), job.spec) as home,
        _open(home, job, listen, stop) as at,
    ):
        return home.path, _winner(at, _profile(at))


def _known(directory: Path | None) -> Path | None:
    """Where a run that is taken up again has put its data set."""
    return None if directory is None else RunDirectory(directory).data


def _complete(home: RunDirectory, job: Job, listen: Listener, stop: Stop) -> RunOutcome:
    if home.read(home.evaluation, Evaluation) is None:
        with _open(home, job, listen, stop) as at:
            profile = _profile(at)
            winner = _winner(at, profile)
            winner = _train(at, winner)
            with at.ledger.stage("export"):
                export_winner(at.pool, home, job, winner)
            with at.ledger.stage("evaluate"), at.pool.abandoned_once(at.stop, PART_PATIENCE):
                evaluation = evaluate_arms(at.pool, home, job, at.plan, winner, at.wall_left(), at.listen, at.heed)
                home.write(home.evaluation, evaluation)
    with home:
        shutil.rmtree(home.scratch / PREFIX, ignore_errors=True)
        home.data.unlink(missing_ok=True)
        publish(home)
        leave_record(home, job, listen)
    return outcome_of(home)


@dataclass(frozen=True)
class _Run:
    """A run under way: its files, its engines, and what it may still spend."""

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


def _stopped(home: RunDirectory) -> InterruptedRunError:
    return InterruptedRunError(
        "Stopped; everything finished so far is saved.", f"Go on with `bandsearch resume {home.path}`."
    )


@contextmanager
def _begun(path: Path, spec: RunSpec) -> Iterator[RunDirectory]:
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
def _open(home: RunDirectory, job: Job, listen: Listener, stop: Stop) -> Iterator[_Run]:
    """Load and plan; charge everything from the first model load to the release of the devices."""
    with home, disk_errors(home.path), Ledger(home.ledger, job.devices, job.budget_seconds) as ledger:
        events = Events(home.events)

        def tell(update: Update) -> None:
            charged = {"spent": ledger.spent, "limit": ledger.limit, "devices": ledger.devices}
            update = update.model_copy(update=charged)
            events.append(update)
            listen(update)

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
                pool = start_engines(job, tell, home.data, home.scratch / PREFIX, stop)
                # Where the disk is full no stage can be charged, and the devices are released all the same.
                stack.callback(pool.stop)
            try:
                finishing = 0.0 if known is None else _unfinished(home, known)
                with ended_in_time(job.wall_seconds, ledger.wall_left, finishing, pool):
                    with ledger.stage("plan"), pool.abandoned_once(stop):
                        plan = _plan(home, job, pool, ledger, known, tell)
                        pool.pack(plan.packing)
                    yield _Run(home, job, ledger, pool, plan, tell, stop)
            finally:
                with ledger.stage("close"):
                    pool.stop()


def _unfinished(home: RunDirectory, plan: Plan) -> float:
    """Wall seconds that are planned for what has to follow the search."""
    stages = ("evaluate",) if home.adapter.exists() else ("retrain", "evaluate")
    return sum(map(plan.seconds_of, stages))


def _require_rest(home: RunDirectory, job: Job, ledger: Ledger, plan: Plan) -> None:
    """Refuse to go on where no adapter has been trained yet and too little is left for one."""
    if job.wall_seconds is None or any((home.scratch / "full").glob("*/*.safetensors")):
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


def _plan(home: RunDirectory, job: Job, pool: EnginePool, ledger: Ledger, known: Plan | None, listen: Listener) -> Plan:
    """The `known` one; a new one where there is none, or where the run has been given more and nothing is decided."""
    if known is None:
        plan = measured_plan(job, pool, listen, spent=lambda: ledger.spent / ledger.devices)
    elif home.winner.exists() or known.engines != pool.size or not _has_more(job, known):
        return known
    else:
        plan = larger_plan(job, known, confirming=bool(searched(Records(home.trials))))
    require_disk(home.path, plan.disk_bytes)
    home.write(home.plan, plan)
    for stage in plan.stages:
        listen(Update(stage="plan", message=f"{stage.name}: {stage.seconds:.0f} s, {stage.detail}"))
    if plan.advice:
        listen(Update(stage="plan", message=plan.advice))
    return plan


def _has_more(job: Job, plan: Plan) -> bool:
    return (job.wall_seconds or 0.0) > (plan.wall_seconds or math.inf)


def _profile(at: _Run) -> SensitivityProfile:
    with at.ledger.stage("probe"):
        known = at.home.read(at.home.profile, SensitivityProfile)
        if known is not None:
            return known
        at.listen(Update(stage="probe", message="gradients, learning-rate range, short full-depth run"))
        settings = ProbeSettings(
            seed=at.job.spec.seed,
            batch_size=at.plan.batch_size,
            space=at.job.spec.space,
            costs=at.plan.costs,
            deadline=at.plan.seconds_of("probe") if at.plan.wall_seconds is not None else None,
        )
        with at.pool.abandoned_once(at.stop):
            profile = at.pool.apply(0, run_probe, settings)
        at.home.write(at.home.profile, profile)
        return profile


def _winner(at: _Run, profile: SensitivityProfile) -> Winner:
    at.heed()
    known = at.home.read(at.home.winner, Winner)
    if known is not None:
        return known
    layout, seed, records = at.job.summary.layout, at.job.spec.seed, Records(at.home.trials)
    with at.ledger.stage("search"):
        # Once finalists have been trained the search is over, whatever time there is now.
        results = searched(records) or run_search(
            at.pool.handles,
            space=at.job.spec.space,
            layout=layout,
            profile=profile,
            plan=at.plan,
            seed=seed,
            records=records,
            study_path=at.home.study,
            scratch=at.home.scratch,
            wall_left=at.wall_left("confirm", "retrain", "evaluate"),
            objective=at.job.spec.objective,
            prior=prior_of(at.home, at.job, profile, at.listen).suggestions,
            listen=at.listen,
            stop=at.stop,
        )
    at.heed()
    with at.ledger.stage("confirm"):
        winner = confirm(
            at.pool,
            results=results,
            layout=layout,
            profile=profile,
            plan=at.plan,
            seed=seed,
            records=records,
            wall_left=at.wall_left("retrain", "evaluate"),
            aim=Aim(at.job.spec.objective, at.job.spec.tolerance),
            retention=at.job.retention.texts[: at.plan.confirm_texts],
            listen=at.listen,
            stop=at.stop,
        )
    at.heed()
    at.home.write(at.home.winner, winner)
    at.listen(Update(stage="confirm", message=winner.reason))
    for signal in signals(results, winner.finalists, profile, at.plan.rungs):
        at.listen(Update(stage="confirm", message=agreed(signal)))
    return winner


def _train(at: _Run, winner: Winner) -> Winner:
    """Train winner and baseline fully. If the baseline comes out ahead it is the winner, and written as such."""
    folder = at.home.scratch / "full"
    arms = {Arm.FULL_DEPTH: winner.baseline}
    if winner.candidate != winner.baseline:
        arms = {Arm.WINNER: winner.candidate, **arms}
    with at.ledger.stage("retrain"):
        left, spare = at.wall_left("evaluate"), spare_evaluation(at.plan, len(arms))

        # Both are still read after the last step, and what is handed over once more.
        reading = 2 * at.plan.costs.seconds_per_validation

        def wall_left() -> float:
            return left() + spare

        steps = winner.training_steps
        if steps is None:
            steps = final_steps(at.plan, wall_left(), len(arms))
            # Kept, so that a training that was broken off goes on as it began.
            winner = winner.model_copy(update={"training_steps": steps})
            at.home.write(at.home.winner, winner)
            if steps > at.plan.full_steps:
                planned = f"{at.plan.full_steps} were planned, and what is left of the budget pays for more"
                at.listen(Update(stage="retrain", message=f"{steps} steps: {planned}"))
        fidelity = full_fidelity(at.plan, steps, at.job.spec.seed)
        shared = at.plan.costs.step_on(at.plan.engines // len(arms))
        teams = form_teams(at.pool, len(arms), shared.engines)
        trainings = retrain(teams, arms, fidelity, folder, lambda: wall_left() - reading, at.listen, at.stop)
        for team in teams:
            team.part()
        at.heed()
        # Of one that was found to be behind before the run was broken off it is known already.
        known = {each.candidate: each for each in winner.trainings}
        known |= {arms[arm]: training.came_of(arms[arm]) for arm, training in trainings.items()}
        winner = winner.model_copy(update={"trainings": tuple(known.values())})
        settled = settle(at.pool, folder, winner, at.plan)
        if settled != winner:
            at.listen(Update(stage="retrain", message=settled.reason))
        at.home.write(at.home.winner, settled)
        return settled
