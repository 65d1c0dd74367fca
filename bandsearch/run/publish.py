"""Gathering a finished run's files into its report."""

from __future__ import annotations

from pathlib import Path

from bandsearch.adapters.limits import chat_template_of, serve_command
from bandsearch.run.finished import Finished
from bandsearch.run.job import Job, prepare_job
from bandsearch.run.report import ReportFacts, Sample, write_report
from bandsearch.run.verdict import verdict
from bandsearch.rundir import Records, RunDirectory
from bandsearch.values.atlas import Prior
from bandsearch.values.ledger import devices_held, read_ledger

SAMPLES = 8


def publish(home: RunDirectory, job: Job) -> None:
    """Write `report.html` and `report.md` from what the stages left. Raises RunDirectoryError for an unfinished run."""
    done = Finished.read(home)
    write_report(
        ReportFacts(
            spec=job.spec,
            environment=done.environment.facts,
            profile=done.profile,
            trials=tuple(Records(home.trials).results()),
            plan=done.plan,
            prior=(home.read(home.prior, Prior) or Prior()).suggestions,
            winner=done.winner,
            evaluation=done.evaluation,
            verdict=verdict(done.winner, done.evaluation),
            ledger_by_stage=read_ledger(home.ledger),
            devices=devices_held(home.ledger),
            layer_count=job.summary.layout.layer_count,
            serve_command=serve_command(
                job.source,
                home.adapter,
                done.winner.candidate.rank,
                chat_template=chat_template_of(home.adapter),
            ),
            adapter=home.adapter.name,
            data_notes=job.dataset.notes,
            samples=tuple(
                Sample(prompt=job.tokenizer.decode(example.prompt_ids.tolist()), answer=example.answer)
                for example in job.dataset.test[:SAMPLES]
            ),
        ),
        home.path,
    )


def rebuild_report(directory: Path) -> Path:
    """Write the report of a finished run again, from its files alone, on whatever machine they are now."""
    home = RunDirectory.open(directory)
    publish(home, prepare_job(home.read_spec(), hold=False))
    return home.report
