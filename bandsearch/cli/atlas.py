"""Commands over the atlas: what every run on this machine has left behind."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bandsearch.cli.depth import WIDTH, heat, over_depth, strip
from bandsearch.cli.options import Json
from bandsearch.cli.output import json_only

if TYPE_CHECKING:
    from bandsearch.values.atlas import AtlasRecord

# Bands of the search drawn per run.
SHOWN = 3

AtlasPath = Annotated[
    Path | None,
    typer.Option(
        "--atlas",
        help="Its directory. Default: what BANDSEARCH_ATLAS names, or ~/.cache/bandsearch/atlas.",
        file_okay=False,
    ),
]

atlas = typer.Typer()


@atlas.callback(invoke_without_command=True)
def listed(context: typer.Context, directory: AtlasPath = None, json: Json = False) -> None:
    """List what runs on this machine have found out about models, the newest first.

    Every complete run leaves a small record; bandsearch run --prior atlas starts the next search from them.

    \b
    Examples:
      bandsearch atlas
      bandsearch atlas --atlas /shared/atlas --json
      bandsearch atlas show qwen2.5-7b
    """
    if context.invoked_subcommand is not None:
        context.obj = directory
        return
    where, records = _records(directory)
    if json:
        with json_only() as write:
            for record in records:
                write(_line(record))
        return
    if not records:
        Console().print(f"The atlas {where} is empty: every complete run leaves a record.", highlight=False)
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in ("model", "data"):
        table.add_column(column, overflow="fold")
    table.add_column("date", no_wrap=True)
    table.add_column("winner")
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("test loss", no_wrap=True)
    for record in records:
        words = (record.slug, Text(record.data), record.date[:10], _winner(record), _share(record), _change(record))
        table.add_row(*words)
    Console().print(table)
    Console().print("Size and test loss are against tuned full depth.", style="dim")


@atlas.command()
def show(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Alias, hub id, directory name or family.")],
    directory: AtlasPath = None,
    json: Json = False,
) -> None:
    """Draw what is known about a model over its depth: where it is sensitive, which bands were tried, which won.

    \b
    Examples:
      bandsearch atlas show demo
      bandsearch atlas show qwen2 --json
    """
    where, records = _records(directory or context.obj)
    found = _matching(records, model)
    if not found:
        from bandsearch.values.errors import UsageError

        known = ", ".join(dict.fromkeys(record.slug for record in records))
        remedy = f"It knows {known}." if known else "It is empty: every complete run leaves a record."
        raise UsageError(f"The atlas {where} has no run on {model}.", remedy)
    if json:
        with json_only() as write:
            for record in found:
                write({"event": "result", **record.model_dump(mode="json")})
        return
    _draw(Console(), found)


def _records(directory: Path | None) -> tuple[Path, "list[AtlasRecord]"]:
    from bandsearch.atlas import atlas_directory, read_records

    where = atlas_directory(str(directory) if directory else None)
    return where, read_records(where, lambda sentence: typer.echo(sentence, err=True))


def _matching(records: "Sequence[AtlasRecord]", name: str) -> "list[AtlasRecord]":
    from bandsearch.models.aliases import ALIASES

    names = {name.casefold(), ALIASES.get(name, name).casefold(), Path(name).name.casefold()}
    exact = [record for record in records if {record.model.casefold(), record.slug.casefold()} & names]
    return exact or [record for record in records if record.layout.family.casefold() in names]


def _line(record: "AtlasRecord") -> dict[str, Any]:
    return {
        "event": "result",
        "model": record.model,
        "fingerprint": record.fingerprint,
        "layers": record.layer_count,
        "data": record.data,
        "date": record.date,
        "winner": record.winner.candidate.model_dump(mode="json"),
        "choice": record.winner.choice.value,
        "gain": None if record.gain is None else record.gain.model_dump(mode="json"),
    }


def _draw(console: Console, records: "Sequence[AtlasRecord]") -> None:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(no_wrap=True, min_width=WIDTH)
    table.add_column(overflow="fold")
    table.add_row("depth", Text("first" + "last".rjust(WIDTH - 5), "dim"), "")
    if len(records) > 1:
        scores = [over_depth([score * record.layer_count for score in record.layer_scores]) for record in records]
        together = [sum(cells) / len(records) for cells in zip(*scores, strict=True)]
        table.add_row("sensitive", heat(together), f"mean of {len(records)} runs")
        covered = [over_depth(_covered(record)) for record in records]
        won = [sum(cells) for cells in zip(*covered, strict=True)]
        table.add_row("winners", heat(won, "green"), f"of {len(records)} runs; darkest where most of them sit")
    for record in records:
        table.add_row("", "", "")
        table.add_row(
            Text(record.slug, "bold"),
            Text(f"{record.data}, {record.date[:10]}", "bold"),
            f"{record.layer_count} layers, {record.fingerprint[:8]}",
        )
        table.add_row("sensitive", heat(over_depth(record.layer_scores)), "")
        tried = [each for each in record.tried if sum(band.width for band in each.bands) < record.layer_count]
        for reading in tried[:SHOWN]:
            layers = "+".join(map(str, reading.bands))
            words = f"{layers}: {reading.loss:.4f} after {reading.steps} steps"
            table.add_row("tried", strip(reading.bands, record.layer_count, "yellow"), words)
        words = f"{_winner(record)}, {_share(record)} of full depth's parameters"
        gain = "" if record.gain is None else f", test loss {_gain(record)}"
        table.add_row("winner", strip(record.winner.candidate.bands, record.layer_count), words + gain)
    console.print(table)


def _covered(record: "AtlasRecord") -> list[float]:
    inside = set(record.winner.candidate.layers)
    return [float(layer in inside) for layer in range(record.layer_count)]


def _winner(record: "AtlasRecord") -> str:
    candidate = record.winner.candidate
    if len(candidate.layers) == record.layer_count:
        return f"all {record.layer_count} layers, rank {candidate.rank}"
    return f"layers {'+'.join(map(str, candidate.bands))} of {record.layer_count}, rank {candidate.rank}"


def _share(record: "AtlasRecord") -> str:
    return f"{record.winner.trainable_parameters / record.winner.baseline_parameters:.0%}"


def _change(record: "AtlasRecord") -> str:
    gain = record.gain
    if gain is None:
        return "–"
    meaning = ("better" if gain.high < 0 else "worse") if gain.excludes_zero else "≈"
    return f"{gain.mean:+.4f} {meaning}"


def _gain(record: "AtlasRecord") -> str:
    if record.gain is None:
        return "–"
    return f"{record.gain.mean:+.4f} ({record.gain.low:+.4f} to {record.gain.high:+.4f})"
