"""All that a data set is made of: one or several sources, and files of validation and test rows, as examples."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bandsearch.data.columns import renamed
from bandsearch.data.problems import Problem
from bandsearch.data.reading import Table, most_read, read
from bandsearch.data.shapes import TEXT_AND_LABEL, Example, Recognised, Shape, hides_answers, recognise
from bandsearch.values.errors import DataError
from bandsearch.values.spec import DataSpec

# Of what is not used, so many names are given.
MOST_COLUMNS = 12


@dataclass(frozen=True)
class Gathered:
    """`validation` and `test` are empty where the data set does not bring them. Of the `read` rows `problems` and the
    `marked_bad` have become no examples. `shape` is that of most training examples, `shapes` names all of theirs.
    `notes` say what was found."""

    name: str
    shape: Shape
    shapes: str
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    read: int
    marked_bad: int
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]

    @property
    def settings(self) -> Gathered:
        """All but the examples."""
        return replace(self, train=(), validation=(), test=())


def gather(spec: DataSpec) -> Gathered:
    """Read all that `spec` names, each source by its own shape. Raises DataError.

    A split that measures and whose answers are kept secret is left out, as if the data set had not brought it.
    """
    tables = _tables(spec)
    train = [recognise(table.name, table.train) for table in tables[: len(spec.names)]]
    own: dict[str, list[Recognised]] = {"validation": [], "test": []}
    notes = []
    for table, like in itertools.zip_longest(tables, train):
        described = [like] if like else []
        for split, parts in own.items():
            rows = getattr(table, split)
            if rows and any(hides_answers(rows, each) for each in (described or train)):
                notes.append(f"The {len(rows):,} {split} rows of {table.name} are not used: they have no answers.")
            elif rows:
                parts.append(recognise(f"{table.name}, {split}", rows, like))
                described.append(parts[-1])
        if described:
            notes.append(_described(described, f" in {table.name}" if len(tables) > 1 else ""))
    parts = [*train, *own["validation"], *own["test"]]
    name = " + ".join(table.name for table in tables[: len(spec.names)])
    kinds = dict.fromkeys(part.shape for part in parts)
    if Shape.TEXT in kinds and len(kinds) > 1:
        raise DataError(
            f"{name} is {' and '.join(kinds)}, which cannot be learned in one run.",
            "Give plain text to a run of its own.",
        )
    sizes = Counter({kind: sum(len(part.examples) for part in train if part.shape is kind) for kind in kinds})
    return Gathered(
        name=name,
        shape=sizes.most_common(1)[0][0],
        shapes=" + ".join(dict.fromkeys(part.shape for part in train)),
        train=_examples(train),
        validation=_examples(own["validation"]),
        test=_examples(own["test"]),
        read=sum(_rows(part) for part in parts),
        marked_bad=sum(part.marked_bad for part in parts),
        problems=tuple(itertools.chain.from_iterable(part.problems for part in parts)),
        notes=(*notes, *_notes(spec, tables, train)),
    )


def _tables(spec: DataSpec) -> tuple[Table, ...]:
    """Those of the sources, then those of files of validation and test rows, which take the place of the sources'."""
    # Imported when needed: a data set may come from elsewhere.
    from bandsearch.data.files import read_file

    tables = [read(spec.model_copy(update={"name": name})) for name in spec.names]
    if spec.validation is not None:
        file = Path(spec.validation).expanduser()
        tables = [replace(table, validation=()) for table in tables]
        tables.append(Table(file.name, (), validation=read_file(file, spec.max_examples)))
    if spec.test is not None:
        file = Path(spec.test).expanduser()
        tables = [replace(table, test=()) for table in tables]
        tables.append(Table(file.name, (), test=read_file(file, spec.max_examples)))
    return renamed(tables, spec.columns) if spec.columns else tuple(tables)


def _examples(parts: Iterable[Recognised]) -> tuple[Example, ...]:
    return tuple(itertools.chain.from_iterable(part.examples for part in parts))


def _rows(part: Recognised) -> int:
    return len(part.examples) + len(part.problems) + part.marked_bad


def _described(parts: Sequence[Recognised], where: str) -> str:
    rows = sum(map(_rows, parts))
    return f"{rows:,} row{'' if rows == 1 else 's'} of {parts[0].shape} ({', '.join(parts[0].columns)}){where}."


def _notes(spec: DataSpec, tables: Sequence[Table], train: Sequence[Recognised]) -> Iterator[str]:
    if spec.max_examples is not None:
        most = most_read(spec.max_examples)
        if any(len(rows) == most for table in tables for rows in (table.train, table.validation, table.test)):
            yield f"Because of --max-examples at most {most:,} rows of a file or split were read, chosen at random."
    if any(part.columns == TEXT_AND_LABEL for part in train):
        yield "The label is learned as the answer to the text; remove that column to learn the text itself."
    if spec.columns:
        yield f"Columns by other names: {', '.join(f'{theirs} is {ours}' for theirs, ours in spec.columns.items())}."
    for what, names in (
        ("Columns", dict.fromkeys(name for part in train for name in part.unused)),
        ("Keys of messages", dict.fromkeys(name for part in train for name in part.ignored)),
    ):
        if names:
            shown = ", ".join(list(names)[:MOST_COLUMNS]) + (", …" if len(names) > MOST_COLUMNS else "")
            yield f"{what} not used: {shown}."
