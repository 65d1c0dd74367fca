"""Commands that look at runs: status, report, export."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bandsearch.cli.options import Json, RunPath
from bandsearch.cli.output import json_only


def status(directory: RunPath, json: Json = False) -> None:
    """Show how far a run is, what it has spent, and the command that goes on with it.

    \b
    Examples:
      bandsearch status results/demo
      bandsearch status results/demo --json
    """
    from bandsearch.run.outcome import status

    found = status(directory)
    if json:
        with json_only() as write:
            write(found.model_dump(mode="json"))
        return
    from bandsearch.cli.tables import status_table

    Console().print(status_table(found))


def report(directory: RunPath) -> None:
    """Write report.html and report.md of a finished run again, from its files.

    \b
    Examples:
      bandsearch report results/demo
      bandsearch report results/demo && xdg-open results/demo/report.html
    """
    from bandsearch.run.publish import rebuild_report

    typer.echo(rebuild_report(directory))


def export(
    directory: RunPath,
    destination: Annotated[Path, typer.Argument(metavar="DESTINATION", help="A directory that does not exist yet.")],
    merged: Annotated[
        bool,
        typer.Option("--merged", help="Write the whole model with the adapter merged into it, which needs no PEFT."),
    ] = False,
) -> None:
    """Copy a run's adapter, a standard PEFT directory, after checking that it would be served as it was trained.

    Its model card and the command that serves it, on standard error, name its new place.

    \b
    Examples:
      bandsearch export results/demo my-adapter
      bandsearch export results/qwen2.5-7b-my /srv/adapters/support-bot
      bandsearch export results/gpt2-my my-model --merged
    """
    from bandsearch.run.exporting import export_run

    exported = export_run(directory, destination, merged=merged)
    typer.echo(exported.directory)
    typer.echo(exported.serving, err=True)
