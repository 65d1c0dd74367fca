"""Probes as runs of given budgets take them: with fewer examples and steps, and rougher, the less time there is.

Beside every table stands, once `probing` has measured it, what the probe finds in the share of a budget that a run
gives it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import TypeAdapter

from bandsearch.rundir import write_atomically
from bandsearch.values.profile import SensitivityProfile

# Budgets of bandsearch, as shares of what a table cost.
LADDER = (1 / 400, 1 / 200, 1 / 100, 1 / 50, 1 / 25, 1 / 10)
# By budget, as such a share.
Probes = Mapping[float, SensitivityProfile]
_FILE = TypeAdapter(dict[float, SensitivityProfile])


def load_probes(folder: Path, task: str) -> Probes:
    """Empty where none were taken."""
    path = _path(folder, task)
    return _FILE.validate_json(path.read_bytes()) if path.exists() else {}


def keep_probes(folder: Path, task: str, probes: Probes) -> None:
    write_atomically(_path(folder, task), _FILE.dump_json(dict(probes)).decode())


def _path(folder: Path, task: str) -> Path:
    return folder / f"{task}.probes.json"
