"""--json: what is printed by anything else goes to standard error."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

NOISY = """
import os, subprocess, sys
from bandsearch.cli.session import session
from bandsearch.values.progress import Update
with session(True) as at:
    print("a library prints")
    os.write(1, b"so does C\\n")
    subprocess.run(["echo", "and a child"])
    at.listen(Update(stage="search", done=0.5))
    at.write({"event": "result", "text": "\u00e9"})
print("after")
"""


def test_standard_output_is_json_lines_alone() -> None:
    done = subprocess.run([sys.executable, "-c", NOISY], capture_output=True, text=True, cwd=ROOT, check=True)
    update, result, after = done.stdout.splitlines()
    assert json.loads(update) == {"event": "update", "stage": "search", "message": "", "done": 0.5}
    assert json.loads(result) == {"event": "result", "text": "é"}
    assert after == "after"
    for words in ("a library prints", "so does C", "and a child"):
        assert words in done.stderr
