"""The rows of a table on disk: one line of JSON per training, under a first line that holds for all of them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from bandsearch.values.errors import BandsearchError
from bandsearch.values.layout import Layout
from bandsearch.values.value import Value
from benchmarks.bandbench.entry import Entry

Reading = tuple[int, float, float]


class Header(Value):
    """What all rows share. `rates` are those every entry is tried at; on a `control` task no depth is better."""

    task: str
    control: bool
    layout: Layout
    rungs: tuple[int, ...]
    full_steps: int
    alpha: float
    batch_size: int
    validation_examples: int
    rates: tuple[float, ...]


class Row(Value):
    """A training: a `proxy` as a search trains it, read at the rungs it reached, the same at a `constant` rate (kept to
    compare with; no part of a table's cost), or a `full` one.

    `readings` are (steps, validation loss, engine seconds so far); none where the training diverged before the first.
    """

    entry: Entry
    rate: float
    seed: int
    kind: Literal["proxy", "constant", "full"]
    readings: tuple[Reading, ...] = Field(default=())

    @property
    def key(self) -> tuple[Entry, float, int, str]:
        return self.entry, self.rate, self.seed, self.kind

    def line(self) -> str:
        """Short names and five figures, so that a table stays small."""
        bands = ",".join(f"{start}-{stop}" for start, stop in self.entry.bands)
        readings = [[steps, float(f"{loss:.5g}"), float(f"{seconds:.4g}")] for steps, loss, seconds in self.readings]
        return json.dumps(
            [bands, self.entry.rank, self.entry.targets, self.rate, self.seed, self.kind, readings],
            separators=(",", ":"),
        )

    @classmethod
    def parse(cls, line: str) -> Row:
        bands, rank, targets, rate, seed, kind, readings = json.loads(line)
        pairs = [part.split("-") for part in bands.split(",")]
        entry = Entry(bands=tuple((int(start), int(stop)) for start, stop in pairs), rank=rank, targets=targets)
        return cls(entry=entry, rate=rate, seed=seed, kind=kind, readings=tuple(map(tuple, readings)))


class Rows:
    """A file that rows are appended to. A kill costs the trainings under way and at most the line being written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.exists():
            data = path.read_bytes()
            whole = data.rfind(b"\n") + 1
            if whole < len(data):
                os.truncate(path, whole)

    @property
    def header(self) -> Header | None:
        line = next(self._lines(), None)
        return None if line is None else Header.model_validate_json(line)

    def begin(self, header: Header) -> None:
        """Write the first line of a new table. Raises BandsearchError where another kind of table is there."""
        known = self.header
        if known is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._append(header.model_dump_json())
        elif known != header:
            differing = [name for name in Header.model_fields if getattr(known, name) != getattr(header, name)]
            raise BandsearchError(
                f"The table {self.path.name} was begun with other {' and '.join(differing)}.",
                "Delete it, or build with what it was begun with.",
            )

    def append(self, row: Row) -> None:
        self._append(row.line())

    def read(self) -> list[Row]:
        lines = self._lines()
        next(lines, None)
        return [Row.parse(line) for line in lines]

    def _lines(self) -> Iterator[str]:
        if self.path.exists():
            yield from self.path.read_text().split("\n")[:-1]

    def _append(self, line: str) -> None:
        with self.path.open("a") as file:
            file.write(f"{line}\n")
            file.flush()
            os.fsync(file.fileno())
