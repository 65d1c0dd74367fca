"""Gathering a finished run's files into its report."""

from __future__ import annotations

from pathlib import Path

from bandsearch.adapters.limits import serve_command
from bandsearch.run.job import Environment, Job, prepare_job
from bandsearch.run.report import ReportFacts, Sample, write_report
from bandsearch.run.verdict import verdict
from bandsearch.rundir import Records, RunDirectory
from bandsearch.values.atlas import Prior
from bandsearch.values.errors import RunDirectoryError
from bandsearch.values.evaluation import Evaluation, Winner
from bandsearch.values.ledger import read_ledger
from bandsearch.values.plan import Plan
from bandsearch.values.profile import SensitivityProfile

SAMPLES = 8


def publish(home: RunDirectory, job: Job) -> None:
    """Write `report.html` and `report.md` from what the stages left. Raises RunDirectoryError for an unfinished run."""
    plan, profile = home.read(home.plan, Plan), home.read(home.profile, SensitivityProfile)
    winner, evaluation = home.read(home.winner, Winner), home.read(home.evaluation, Evaluation)
    facts = home.read(home.environment, Environment)
    if plan is None or profile is None or winner is None or evaluation is None or facts is None:
        raise RunDirectoryError(
            f"The run in {home.path} is not complete.", f"Go on with `bandsearch resume {home.path}`."
        )
    write_report(
        ReportFacts(
            spec=job.spec,
            environment=facts.facts,
            profile=profile,
            trials=tuple(Records(home.trials).results()),
            plan=plan,
            prior=(home.read(home.prior, Prior) or Prior()).suggestions,
            winner=winner,
            evaluation=evaluation,
            verdict=verdict(winner, evaluation),
            ledger_by_stage=read_ledger(home.ledger),
            devices=job.devices,
            layer_count=job.summary.layout.layer_count,
            serve_command=serve_command(job.source, home.adapter, winner.candidate.rank),
            adapter=home.adapter.name,
            data_notes=job.dataset.notes,
            samples=tuple(
                Sample(prompt=job.tokenizer.decode(list(example.prompt_ids)), answer=example.answer)
                for example in job.dataset.test[:SAMPLES]
            ),
        ),
        home.path,
    )


def rebuild_report(directory: Path) -> Path:
    """Write the report of a finished run again, from its files alone."""
    home = RunDirectory.open(directory)
    publish(home, prepare_job(home.read_spec()))
    return home.report
