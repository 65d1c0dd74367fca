"""Write docs/cli.md from the live --help of every command: `python docs/cli.py`."""

import os
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).with_name("cli.md")
COMMANDS = (
    "run",
    "resume",
    "plan",
    "probe",
    "search",
    "status",
    "report",
    "export",
    "atlas",
    "atlas show",
    "verify",
    "eval",
    "data",
    "models",
    "doctor",
)


def helped(*arguments: str) -> str:
    """What `bandsearch ... --help` prints on a terminal 100 characters wide, without colours."""
    known = {name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-m", "bandsearch", *arguments, "--help"],
        env=known | {"COLUMNS": "100", "PYTHONIOENCODING": "utf-8"},
        cwd=PAGE.parent.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    return "\n".join(line.rstrip() for line in done.stdout.strip("\n").splitlines())


def page() -> str:
    parts = ["# The command line", "", "Written from `--help` by `python docs/cli.py`; a test fails when it is stale."]
    for command in ("", *COMMANDS):
        parts += ["", f"## bandsearch {command}".rstrip(), "", "```text", helped(*command.split()), "```"]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
