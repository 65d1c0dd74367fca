"""Columns by the names that a person gives them: `article=prompt` has the column article read as prompt."""

from __future__ import annotations

import difflib
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from bandsearch.data.cells import fold
from bandsearch.data.reading import Row, Table
from bandsearch.values.errors import DataError, UsageError


def parse_columns(text: str) -> dict[str, str]:
    """ "article=prompt, highlights=completion" as what each column is read as. Raises UsageError."""
    columns: dict[str, str] = {}
    for pair in text.split(","):
        theirs, separator, ours = (part.strip() for part in pair.partition("="))
        if not (theirs and separator and ours):
            raise UsageError(
                f"--columns {text!r} does not say what {pair.strip() or 'nothing'!r} is read as.",
                "Write pairs such as article=prompt,highlights=completion.",
            )
        if fold(theirs) in map(fold, columns):
            raise UsageError(f"--columns {text!r} names {theirs} twice.", "Name it once.")
        columns[theirs] = ours
    return columns


def renamed(tables: Sequence[Table], columns: Mapping[str, str]) -> tuple[Table, ...]:
    """The tables with their columns read as `columns` says. Raises DataError for one that no row of any has, and where
    another column of a table already has the new name."""
    known = [dict.fromkeys(str(column) for row in table.rows for column in row.values) for table in tables]
    everywhere = dict.fromkeys(itertools.chain.from_iterable(known))
    for theirs in columns:
        if fold(theirs) not in map(fold, everywhere):
            close = difflib.get_close_matches(theirs, everywhere, 1)
            hint = f" Did you mean {close[0]}?" if close else ""
            name = " and ".join(table.name for table in tables)
            raise DataError(f"{name} has no column {theirs!r}, only {', '.join(everywhere)}.{hint}", "Mend --columns.")
    return tuple(_renamed(table, columns, have) for table, have in zip(tables, known, strict=True))


def _renamed(table: Table, columns: Mapping[str, str], known: Mapping[str, None]) -> Table:
    names = {fold(theirs): ours for theirs, ours in columns.items()}
    have = Counter(map(fold, known))
    for theirs, ours in columns.items():
        if fold(theirs) not in have:
            continue
        if have[fold(theirs)] > 1:
            alike = " and ".join(repr(column) for column in known if fold(column) == fold(theirs))
            raise DataError(f"{table.name} has columns {alike}, which are one to bandsearch.", "Rename or remove one.")
        if fold(ours) in have.keys() - names.keys():
            raise DataError(
                f"{table.name} has a column {ours!r} already, so {theirs!r} cannot be read as it.",
                f"Have that one read as something else too: --columns {theirs}={ours},{ours}=other.",
            )

    def read(rows: Iterable[Row]) -> tuple[Row, ...]:
        return tuple(
            replace(row, values={names.get(fold(column), column): value for column, value in row.values.items()})
            for row in rows
        )

    return replace(table, train=read(table.train), validation=read(table.validation), test=read(table.test))
