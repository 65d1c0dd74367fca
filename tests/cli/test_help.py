"""Help: every command has examples, answers without the heavy libraries, and matches the documentation."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bandsearch.cli.app import app
from bandsearch.values.levers import Levers

ROOT = Path(__file__).parents[2]
COMMANDS = (
    *("run", "resume", "plan", "probe", "search", "status", "report", "export", "atlas", "atlas show"),
    *("verify", "eval", "data", "models", "doctor"),
)
HEAVY = (
    *("torch", "transformers", "peft", "ray", "optuna", "datasets", "lm_eval"),
    *("scipy", "numpy", "pandas", "jinja2", "yaml"),
)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_examples(command: str) -> None:
    result = CliRunner().invoke(app, [*command.split(), "--help"])
    assert result.exit_code == 0
    examples = result.output.split("Examples:")[1].split("╭")[0]
    assert examples.count(f"bandsearch {command}") >= 2


def test_the_first_page_lists_every_command_and_two_examples() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    assert result.output.count("bandsearch run --model") == 2
    listed = {line.split()[1] for line in result.output.splitlines() if line.startswith("│ ") and len(line.split()) > 2}
    assert {command for command in COMMANDS if " " not in command} <= listed


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_imports_no_heavy_library(command: str) -> None:
    code = (
        "import sys, json, atexit\n"
        f"atexit.register(lambda: print(json.dumps(sorted(set(sys.modules) & set({HEAVY!r}))), file=sys.stderr))\n"
        f"sys.argv = ['bandsearch', *{command.split()!r}, '--help']\n"
        "from bandsearch.cli.app import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert "Usage" in done.stdout
    assert json.loads(done.stderr) == []


def test_the_documented_command_line_is_the_live_one() -> None:
    specification = importlib.util.spec_from_file_location("write_cli_page", ROOT / "docs" / "cli.py")
    assert specification is not None
    assert specification.loader is not None
    writer = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(writer)
    assert writer.PAGE.read_text(encoding="utf-8") == writer.page(), "stale: run `python docs/cli.py`"


def test_help_names_every_lever() -> None:
    """Written out, since reading the list would make every --help load pydantic."""
    words = CliRunner().invoke(app, ["run", "--help"]).output.replace("│", " ").split()
    assert set(Levers.model_fields) <= {word.strip(",.") for word in words}


def test_options_of_a_run_are_offered_where_they_mean_something() -> None:
    def options(command: str) -> str:
        return CliRunner().invoke(app, [command, "--help"]).output

    assert "--budget" in options("plan")
    assert "--budget" not in options("probe")
    assert "--tasks" in options("eval")
    assert "--tasks" not in options("probe")
    assert "--space" in options("search")


def test_square_brackets_are_shown() -> None:
    """Rich takes what stands in them for a style."""
    shown = "".join(CliRunner().invoke(app, ["run", "--help"]).output.replace("│", " ").split())
    assert "id[@revision]" in shown
    assert "bandsearch[qlora]" in shown
