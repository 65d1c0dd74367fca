"""Gathering a finished run's files into its report."""

from __future__ import annotations

from pathlib import Path

from bandsearch.adapters.limits import chat_template_of, not_served, serve_command
from bandsearch.run.finished import Finished
from bandsearch.run.report import ReportFacts, write_report
from bandsearch.run.verdict import verdict
from bandsearch.rundir import Records, RunDirectory
from bandsearch.values.atlas import Prior
from bandsearch.values.ledger import devices_held, read_ledger


def publish(home: RunDirectory) -> None:
    """Write `report.html` and `report.md` from what the stages left. Raises RunDirectoryError for an unfinished run."""
    done = Finished.read(home)
    lineage = done.environment.lineage
    write_report(
        ReportFacts(
            spec=home.read_spec(),
            environment=done.environment.told,
            profile=done.profile,
            trials=tuple(Records(home.trials).results()),
            plan=done.plan,
            prior=(home.read(home.prior, Prior) or Prior()).suggestions,
            winner=done.winner,
            evaluation=done.evaluation,
            verdict=verdict(done.winner, done.evaluation),
            ledger_by_stage=read_ledger(home.ledger),
            devices=devices_held(home.ledger),
            serve_command=serve_command(
                done.environment.source,
                home.adapter,
                done.winner.candidate.rank,
                chat_template=chat_template_of(home.adapter),
            ),
            not_served=not_served(lineage.layout if lineage else None, home.path),
            adapter=home.adapter.name,
            data_notes=done.environment.data_notes,
        ),
        home.path,
    )


def rebuild_report(directory: Path) -> Path:
    """Write the report of a finished run again, from its files alone, on whatever machine they are now."""
    home = RunDirectory.open(directory)
    publish(home)
    return home.report
