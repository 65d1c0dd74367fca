"""The main flow: probe, search, confirm, retrain, export, evaluate, report. It reads from top to bottom."""

from __future__ import annotations

from pathlib import Path

from bandsearch.run import stages
from bandsearch.run.job import Job, default_directory, prepare_job
from bandsearch.run.outcome import RunOutcome, outcome_of
from bandsearch.run.publish import publish
from bandsearch.run.record import leave_record
from bandsearch.run.rest import enlarged
from bandsearch.run.underway import Underway, begun, opened
from bandsearch.rundir import RunDirectory
from bandsearch.values.errors import BudgetError
from bandsearch.values.evaluation import Evaluation, Winner
from bandsearch.values.progress import Listener, Stop, never, silent
from bandsearch.values.spec import RunSpec


def run(spec: RunSpec, directory: Path | None = None, listen: Listener = silent, stop: Stop = never) -> RunOutcome:
    """Do the whole job in `directory` (default: a new one under `results/`), or go on with it where it stands.

    `stop` is asked between steps; once it is true the run saves what it has and raises InterruptedRunError. Raises a
    BandsearchError for anything a person can mend; nothing is left half-written.
    """
    job = prepare_job(spec, known=_known(directory))
    with begun(directory or default_directory(spec, job.source), job.spec) as home:
        return _complete(home, job, listen, stop)


def resume(directory: Path, listen: Listener = silent, stop: Stop = never, budget: str | None = None) -> RunOutcome:
    """Go on with the run in `directory`: what is finished is kept, what was under way is done again.

    `budget`: all that it may spend from now on, more than before. As long as no winner is chosen the plan is made anew
    with it; afterwards the final training gets longer if it has not begun. Where nothing could be compared so far and
    now can be, the search begins. Raises BudgetError for one that is no more.
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
        begun(directory or default_directory(spec, job.source), job.spec) as home,
        opened(home, job, listen, stop) as at,
    ):
        return home.path, _winner(at)


def _complete(home: RunDirectory, job: Job, listen: Listener, stop: Stop) -> RunOutcome:
    if home.read(home.evaluation, Evaluation) is None:
        with opened(home, job, listen, stop) as at:
            winner = _winner(at)
            winner = stages.retrain(at, winner)
            stages.export(at, winner)
            stages.evaluate(at, winner)
    with home:
        home.tidy()
        publish(home)
        leave_record(home, job, listen)
    return outcome_of(home)


def _winner(at: Underway) -> Winner:
    """Whom search and confirmation chose, in this session or an earlier one."""
    profile = stages.probe(at)
    known = at.home.read(at.home.winner, Winner)
    if known is not None:
        return known
    results = stages.search(at, profile)
    return stages.confirm(at, profile, results)


def _known(directory: Path | None) -> Path | None:
    """Where a run that is taken up again has put its data set."""
    return None if directory is None else RunDirectory(directory).data
