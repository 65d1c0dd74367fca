"""Gathering a finished run's files into its report."""

from __future__ import annotations

from pathlib import Path

from bandsearch.adapters.card import python_code
from bandsearch.adapters.limits import chat_template_of, merging, not_served, serve_command
from bandsearch.adapters.recipe import recipe
from bandsearch.run.finished import Finished
from bandsearch.run.report import ReportFacts, write_report
from bandsearch.run.verdict import verdict
from bandsearch.rundir import Records, RunDirectory
from bandsearch.values.atlas import Prior
from bandsearch.values.ledger import devices_held, read_ledger


def publish(home: RunDirectory) -> None:
    """Write `report.html` and `report.md` from what the stages left. Raises RunDirectoryError for an unfinished run."""
    done = Finished.read(home)
    spec, winner, lineage = home.read_spec(), done.winner, done.environment.lineage
    chat_template = chat_template_of(home.adapter)
    python = how = ""
    # Runs of the first releases do not say what their adapter comes from.
    if lineage is not None:
        python = python_code(lineage, home.adapter, chat_template)
        if winner.steps_trained is not None:
            fidelity = done.plan.final_fidelity(winner.steps_trained, spec.seed)
            how = recipe(winner.as_trained(winner.candidate), lineage.layout, fidelity)
    write_report(
        ReportFacts(
            spec=spec,
            environment=done.environment.told,
            profile=done.profile,
            trials=tuple(Records(home.trials).results()),
            plan=done.plan,
            prior=(home.read(home.prior, Prior) or Prior()).suggestions,
            winner=winner,
            evaluation=done.evaluation,
            verdict=verdict(winner, done.evaluation),
            ledger_by_stage=read_ledger(home.ledger),
            devices=devices_held(home.ledger),
            serve_command=serve_command(
                done.environment.source,
                home.adapter,
                winner.candidate.rank,
                chat_template=chat_template,
            ),
            not_served=not_served(lineage.layout if lineage else None, home.path),
            merging=merging(home.path),
            python=python,
            recipe=how,
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
