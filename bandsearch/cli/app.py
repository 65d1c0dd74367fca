"""The console entry point: every command, and what people see when something is wrong."""

from __future__ import annotations

import atexit
import errno
import os
import sys
import warnings
from contextlib import suppress
from io import TextIOWrapper
from typing import Annotated, Any, NoReturn

import typer

import bandsearch
from bandsearch.cli import checking, doctor, looking, running
from bandsearch.cli.atlas import atlas
from bandsearch.cli.interrupt import INTERRUPTED
from bandsearch.cli.output import error_line, json_only
from bandsearch.values.errors import BandsearchError, FullDiskError, UsageError

app = typer.Typer(
    name="bandsearch",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog="Exit codes: 0 done. 1 a check found something wrong (verify, doctor). 2 what was asked for is wrong, or "
    "the budget is too small. 75 a run lost an engine or its disk is full: mend that, and bandsearch resume goes on. "
    "130 stopped by Ctrl-C, SIGTERM or a closed terminal: bandsearch resume goes on.",
    context_settings={"help_option_names": ["-h", "--help"]},
)

MAIN_JOB, LOOKING, CHECKING = "The main job", "Looking at runs", "Checking"

app.command(rich_help_panel=MAIN_JOB)(running.run)
app.command(rich_help_panel=MAIN_JOB)(running.resume)
app.command(rich_help_panel=MAIN_JOB)(running.plan)
app.command(rich_help_panel=MAIN_JOB)(running.probe)
app.command(rich_help_panel=MAIN_JOB)(running.search)
app.command(rich_help_panel=LOOKING)(looking.status)
app.command(rich_help_panel=LOOKING)(looking.report)
app.command(rich_help_panel=LOOKING)(looking.export)
app.add_typer(atlas, name="atlas", rich_help_panel=LOOKING)
app.command(rich_help_panel=CHECKING)(checking.verify)
app.command("eval", rich_help_panel=CHECKING)(checking.evaluate)
app.command(rich_help_panel=CHECKING)(checking.data)
app.command(rich_help_panel=CHECKING)(checking.models)
app.command(rich_help_panel=CHECKING)(doctor.doctor)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"bandsearch {bandsearch.__version__}")
        raise typer.Exit


@app.callback()
def bandsearch_command(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Find the best LoRA adapter a fixed amount of compute can buy, and the layers where it should sit.

    \b
    Examples:
      bandsearch run --model demo --budget 10min
      bandsearch run --model qwen2.5-7b --dataset my.jsonl --budget 8gpu-h
    """


def main() -> None:
    """Run the command line. A BandsearchError becomes its sentence and its exit code; a bug keeps its traceback."""
    # Without a network the hub's client writes a line for each of its attempts, before our sentence says it.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    # Libraries warn each other of what will change; nobody at a terminal can act on it.
    warnings.simplefilter("ignore", FutureWarning)
    if isinstance(sys.stdout, TextIOWrapper):
        # Arrows and dashes are not worth an error where the locale does not know them.
        sys.stdout.reconfigure(errors="replace")
    try:
        app(prog_name="bandsearch")
    except BandsearchError as error:
        with suppress(OSError):
            typer.echo(f"bandsearch: {error}", err=True)
        _write_json(error)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno == errno.EIO and error.filename is None:
            # Of a terminal that has gone.
            _end(INTERRUPTED)
        # Of what is written there anything may lie on it: what a command prints, a library's cache.
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f"that holds {error.filename}" if error.filename else "or pipe that the output goes to"
        full = FullDiskError(f"The disk {where} is full.", "Free some space.")
        with suppress(OSError):
            typer.echo(f"bandsearch: {full}", err=True)
        _write_json(full)
        _end(full.exit_code)
    except SystemExit as ended:
        # The parser of options has said what is wrong with them, to people alone.
        wrong: Any = ended.__context__
        if hasattr(wrong, "format_message"):
            context = getattr(wrong, "ctx", None)
            remedy = f"See {context.command_path} --help." if context else ""
            _write_json(UsageError(wrong.format_message(), remedy))
        raise


def _end(code: int) -> NoReturn:
    """At once: what Python would write at its end fails once more."""
    atexit._run_exitfuncs()
    os._exit(code)


def _write_json(error: BandsearchError) -> None:
    # It may be raised before a command knows its options.
    if "--json" in sys.argv:
        with suppress(OSError), json_only() as write:
            write(error_line(error))
