"""Gathering a finished run's files into its report."""

from __future__ import annotations

from pathlib import Path

from bandsearch.adapters.card import python_code
from bandsearch.adapters.limits import chat_template_of, merging
from bandsearch.adapters.recipe import recipe
from bandsearch.run.finished import Finished
from bandsearch.run.report import ReportFacts, write_report
from bandsearch.rundir import Records, RunDirectory
from bandsearch.values.atlas import Prior
from bandsearch.values.ledger import devices_held, read_ledger


def publish(home: RunDirectory) -> None:
    """Write `report.html` and `report.md` from what the stages left. Raises RunDirectoryError for an unfinished run."""
    done = Finished.read(home)
    spec, winner, lineage = home.read_spec(), done.winner, done.environment.lineage
    python = how = ""
    # Runs of earlier versions do not say what their adapter comes from.
    if lineage is not None:
        python = python_code(lineage, home.adapter, chat_template_of(home.adapter))
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
            verdict=done.verdict,
            ledger_by_stage=read_ledger(home.ledger),
            devices=devices_held(home.ledger),
            serve_command=done.serve_command or "",
            not_served=done.not_served,
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
