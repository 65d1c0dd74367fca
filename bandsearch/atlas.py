"""The atlas: a directory with a small JSON file for every complete run on this machine."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from bandsearch.rundir import write_atomically
from bandsearch.values.atlas import AtlasRecord

VARIABLE = "BANDSEARCH_ATLAS"
DEFAULT = Path("~/.cache/bandsearch/atlas")


def atlas_directory(given: str | None = None) -> Path:
    """`given`, else what BANDSEARCH_ATLAS names, else the one in the user's cache. It need not exist."""
    return Path(given or os.environ.get(VARIABLE) or DEFAULT).expanduser()


def add_record(directory: Path, record: AtlasRecord) -> Path:
    """Write the record whole or not at all; the same run again takes the place of its first record. Raises OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    what = record.model_dump_json(exclude={"date", "versions"})
    path = directory / f"{record.slug}-{hashlib.sha256(what.encode()).hexdigest()[:12]}.json"
    write_atomically(path, record.model_dump_json(indent=1) + "\n")
    return path


def read_records(directory: Path, warn: Callable[[str], None]) -> list[AtlasRecord]:
    """Every record, the newest first; none where the directory does not exist.

    Files that cannot be read, or were written in a format this version does not know, are left out with one warning
    for all of them.
    """
    records, damaged = [], []
    try:
        files = sorted(path for path in directory.glob("*.json") if not path.name.startswith("."))
    except OSError as error:
        warn(f"The atlas {directory} cannot be read: {error.strerror}.")
        return []
    for path in files:
        try:
            records.append((path.name, AtlasRecord.model_validate_json(path.read_text(encoding="utf-8"))))
        except (OSError, UnicodeDecodeError, ValidationError):
            damaged.append(path.name)
    if damaged:
        others = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
        warn(f"The atlas {directory} has files that are no records; left out: {damaged[0]}{others}.")
    # By name where dates are equal, so that the order is the same on every reading.
    records.sort(key=lambda pair: pair[0])
    records.sort(key=lambda pair: pair[1].date, reverse=True)
    return [record for _, record in records]
