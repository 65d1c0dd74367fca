"""Write docs/cli.md from the live --help of every command: `python docs/cli.py`."""

import os
import re
import subprocess
import sys
from pathlib import Path

PANEL = re.compile(r"╭─ (?P<title>(?!Options|Arguments)[^─]+?) ─.*?╯", re.DOTALL)
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
    known: dict[str, str] = {}
    for command in ("", *COMMANDS):
        text = PANEL.sub(lambda panel, command=command: told_once(panel, command, known), helped(*command.split()))
        parts += ["", f"## bandsearch {command}".rstrip(), "", "```text", text, "```"]
    return "\n".join(parts) + "\n"


def told_once(panel: re.Match[str], command: str, known: dict[str, str]) -> str:
    """A panel of options, or which command has the very same one."""
    first = known.setdefault(panel[0], command)
    return panel[0] if first == command else f"{panel['title']}: as of bandsearch {first}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
