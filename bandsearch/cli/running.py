"""Commands that spend compute: run, resume, plan, probe, search."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from bandsearch.cli.display import clock_text
from bandsearch.cli.options import NO_SEARCH, NO_TASKS, Json, Out, RunPath, takes_specification
from bandsearch.cli.output import outcome_line
from bandsearch.cli.session import Session, session

if TYPE_CHECKING:
    from bandsearch.run.outcome import RunOutcome
    from bandsearch.values.spec import RunSpec


@takes_specification()
def run(
    spec: "RunSpec",
    out: Out = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what the budget buys; the same as plan.")] = False,
    json: Json = False,
) -> None:
    """Do the whole job: probe, search, confirm, retrain, export, evaluate, report.

    Ctrl-C once finishes the step, saves, and says how to resume; twice stops now.

    With the same options and --out it goes on where it stopped.

    \b
    Examples:
      bandsearch run --model demo --budget 10min
      bandsearch run --model qwen2.5-7b --dataset my.jsonl --budget 8gpu-h
      bandsearch run -m ./my-model -d my.jsonl --trials 24 --out results/mine
      bandsearch run -m llama3.2-1b -d my.csv --space mid_block -b 2gpu-h
    """
    if dry_run:
        _plan(spec, json)
        return
    with session(json) as at:
        from bandsearch.run.main import run

        outcome = run(spec, out, at.listen, at.stop)
        at.write(outcome_line(outcome))
    _tell(at, outcome)


def resume(
    directory: RunPath,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget",
            "-b",
            help="All that the run may spend from now on, with what it has spent: more than before, in the same unit.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Go on with an interrupted run. Finished work is kept, and the budget it has spent stays spent.

    With a larger --budget the plan is made anew as long as no winner is chosen; after that the final training gets
    longer if it has not begun. Where nothing could be compared so far and now can be, the search begins.

    \b
    Examples:
      bandsearch resume results/demo
      bandsearch resume results/demo --budget 20min
    """
    from bandsearch.rundir import RunDirectory

    # A typing error is said before the seconds that it takes to import torch.
    RunDirectory.open(directory)
    with session(json) as at:
        from bandsearch.run.main import resume

        outcome = resume(directory, at.listen, at.stop, budget)
        at.write(outcome_line(outcome))
    _tell(at, outcome)


@takes_specification()
def plan(spec: "RunSpec", json: Json = False) -> None:
    """Measure seconds per step on this machine and print what the budget buys, without spending it.

    \b
    Examples:
      bandsearch plan --model demo --budget 10min
      bandsearch plan --model qwen2.5-7b --dataset my.jsonl --budget 8gpu-h --json
    """
    _plan(spec, json)


@takes_specification(**NO_SEARCH, **NO_TASKS)
def probe(
    spec: "RunSpec",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the profile to this JSON file.")] = None,
    json: Json = False,
) -> None:
    """Measure how sensitive every layer is, and which bands and rates are worth trying; nothing is searched.

    \b
    Examples:
      bandsearch probe --model demo
      bandsearch probe -m qwen2.5-0.5b -d my.jsonl --out profile.json
    """
    with session(json) as at:
        from bandsearch.run.single import probe_only

        profile = probe_only(spec, out, at.listen)
        at.say(profile)
    if not json:
        from bandsearch.cli.bars import draw

        at.console.print(draw(profile))


@takes_specification()
def search(spec: "RunSpec", out: Out = None, json: Json = False) -> None:
    """Probe, search and confirm; stop before the final training. `bandsearch resume` does the rest.

    \b
    Examples:
      bandsearch search --model demo --budget 10min --out results/searched
      bandsearch search -m qwen2.5-1.5b -d my.jsonl --trials 40 --space wide
    """
    with session(json) as at:
        from bandsearch.run.main import search

        directory, winner = search(spec, out, at.listen, at.stop)
        at.say(winner, directory=str(directory))
    if not json:
        other = f" or {winner.baseline}" if winner.is_open else ""
        at.console.print(f"[bold]Chosen:[/bold] {winner.candidate}{other}", highlight=False)
        at.console.print(winner.reason, markup=False, highlight=False)
        at.console.print(f"Train and evaluate it: bandsearch resume {directory}", markup=False, highlight=False)


def _plan(spec: "RunSpec", json: bool) -> None:
    with session(json) as at:
        from bandsearch.run.single import plan_only

        planned = plan_only(spec, at.listen, at.stop)
        at.say(planned)
    if not json:
        from bandsearch.cli.tables import plan_table

        at.console.print(plan_table(planned, spec))


def _tell(at: Session, outcome: "RunOutcome") -> None:
    if at.as_json:
        return
    console = at.console
    console.print(f"\n[bold]{escape(outcome.verdict)}[/bold]", highlight=False)
    for name, value in (
        ("adapter", outcome.adapter),
        ("report", outcome.directory / "report.html"),
        ("spent", clock_text(outcome.spent_seconds) + " device time"),
        ("serve", outcome.serve_command or outcome.not_served),
    ):
        console.print(f"[dim]{name:>8}[/dim]  {escape(str(value))}", highlight=False, soft_wrap=True)
