"""Where rows come from: a file, a hub data set, or a task of the embedded demo."""

from __future__ import annotations

import difflib
import os
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bandsearch.values.errors import DataError
from bandsearch.values.spec import DataSpec

DEMO_SCHEME = "demo:"
SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".tsv")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?")
# So many rows are read of a source that is far larger than what is wanted of it: duplicates and unusable ones among
# them should leave enough.
FEWEST_READ, READ_PER_EXAMPLE = 10_000, 10


@dataclass(frozen=True)
class Row:
    """`place` says where a person finds it: "my.jsonl:17", "my.csv row 4". A row with a `problem` could not be read."""

    place: str
    values: Mapping[str, Any]
    problem: str = ""


@dataclass(frozen=True)
class Table:
    """`validation` and `test` are empty where the data set does not bring its own."""

    name: str
    train: tuple[Row, ...]
    validation: tuple[Row, ...] = ()
    test: tuple[Row, ...] = ()

    @property
    def rows(self) -> tuple[Row, ...]:
        return (*self.train, *self.validation, *self.test)


def look_for(name: str) -> None:
    """Raise DataError where there is no such file and the hub could have no data set of that name. Quick."""
    if not name:
        # As a path it would be the folder one happens to be in.
        raise DataError("The name of a data set is empty.", "Give a file, a folder, a hub id, or demo:<task>.")
    path = Path(name).expanduser()
    if not name.startswith(DEMO_SCHEME) and not path.exists() and not _is_on_hub(name):
        raise _missing(path)


def look_for_file(name: str) -> None:
    """Raise DataError where there is no such file."""
    path = Path(name).expanduser()
    if not path.is_file():
        raise _missing(path)


def most_read(limit: int) -> int:
    """So many rows of a file or split are read at most where `limit` are wanted."""
    return max(FEWEST_READ, READ_PER_EXAMPLE * limit)


def read_of(count: int, limit: int | None) -> Sequence[int]:
    """Which of `count` rows are read where `limit` are wanted, in order: all, or always the same random ones."""
    most = count if limit is None else most_read(limit)
    return range(count) if count <= most else sorted(random.Random(count).sample(range(count), most))


def read(spec: DataSpec) -> Table:
    """The rows of what `spec.name` names; of a large one with `spec.max_examples` a sample of them. Raises DataError
    with the place of what cannot be read."""
    if spec.name.startswith(DEMO_SCHEME):
        return _read_demo(spec)
    path = Path(spec.name).expanduser()
    if path.is_file():
        _refuse_parts(spec)
        # Here and below, imported when needed: a data set comes from one of the three.
        from bandsearch.data.files import read_file

        return Table(name=path.name, train=read_file(path, spec.max_examples))
    if path.is_dir() and not (spec.config or spec.split):
        from bandsearch.data.hub import read_folder

        table = read_folder(path, spec.max_examples)
        if table is not None:
            return table
    if path.is_dir() or _is_on_hub(spec.name):
        from bandsearch.data.hub import read_hub

        return read_hub(spec)
    raise _missing(path)


def is_data_file(path: Path) -> bool:
    return path.name.lower().removesuffix(".gz").endswith(SUFFIXES)


def without_nulls(values: Mapping[str, Any]) -> dict[str, Any]:
    """A row out of Arrow's structs, which give every object of a column the fields of all of them: those that are null
    were not there, or were null, which a chat template would write out."""
    return {column: _without_nulls(value) for column, value in values.items()}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value


def _is_on_hub(name: str) -> bool:
    """Whether it could be."""
    return _HUB_ID.fullmatch(name) is not None and not _looks_like_a_file(name)


def _looks_like_a_file(name: str) -> bool:
    return is_data_file(Path(name)) or name.startswith((".", "/", "~"))


def _missing(path: Path) -> DataError:
    if path.exists():
        # A pipe, as from <(zcat ...): it can be read once, and a run that is resumed reads its data again.
        return DataError(f"{path} is neither a file nor a folder.", "Write what it gives to a file.")
    if path.is_symlink():
        return DataError(f"{path} is a link to {os.readlink(path)}, which is not there.", "Give the file itself.")
    folder = path.parent
    names = [entry.name for entry in folder.iterdir() if is_data_file(entry)] if folder.is_dir() else []
    close = difflib.get_close_matches(path.name, names, 1)
    remedy = f"Did you mean {folder / close[0]}?" if close else "Check the path, or give a hub id such as openai/gsm8k."
    return DataError(f"There is no data file {path}.", remedy)


def _read_demo(spec: DataSpec) -> Table:
    from bandsearch.demo.corpus import CORPUS, held_out
    from bandsearch.demo.tasks import TASKS, rows

    _refuse_parts(spec)
    task = spec.name.removeprefix(DEMO_SCHEME)
    if task == CORPUS:
        texts = enumerate(held_out(), 1)
        return Table(name=spec.name, train=tuple(Row(f"{spec.name} row {number}", row) for number, row in texts))
    if task not in TASKS:
        close = difflib.get_close_matches(task, TASKS, 1)
        hint = f" Did you mean demo:{close[0]}?" if close else ""
        raise DataError(f"There is no demo task {task!r}.{hint}", f"Choose from {', '.join(TASKS)}.")
    places = (f"{spec.name} row {number}" for number in range(1, 2**31))
    return Table(name=spec.name, train=tuple(Row(place, row) for place, row in zip(places, rows(task), strict=False)))


def _refuse_parts(spec: DataSpec) -> None:
    if spec.config or spec.split:
        raise DataError(
            f"{spec.name} has no configurations or splits.", "Those belong to hub data sets; leave them out."
        )
