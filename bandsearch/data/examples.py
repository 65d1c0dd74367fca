"""Encoded examples: one as the engine trains on it, many in a few long arrays, and a data set of them by split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Kind = TypeVar("Kind", bound=np.generic)

SCHEMA = pa.schema(
    {
        "input_ids": pa.large_list(pa.int32()),
        # A byte each: Arrow's own truth values are bits, which NumPy cannot view.
        "supervised": pa.large_list(pa.uint8()),
        "prompt_length": pa.int64(),
        "answer": pa.large_string(),
        "place": pa.large_string(),
        "group": pa.int64(),
    }
)


@dataclass(frozen=True, eq=False)
class Encoded:
    """One example as the engine trains on it.

    `input_ids` and `supervised` have the shape (tokens,): position i is true if token i is to be predicted (never the
    first). The first `prompt_length` tokens go up to the last answer and `answer` is its text, for generation, tool
    calls as the template writes them; 0 and empty for plain text, which asks nothing. `place` is where the row came
    from. `group` is equal for examples that stand in one split because they ask the same, so that they can be drawn
    together; 0 where nothing was split.
    """

    input_ids: NDArray[np.int32]
    supervised: NDArray[np.bool_]
    prompt_length: int
    answer: str
    place: str
    group: int = 0

    @property
    def prompt_ids(self) -> NDArray[np.int32]:
        return self.input_ids[: self.prompt_length]

    @property
    def learned(self) -> int:
        """How many tokens are to be predicted."""
        return int(np.count_nonzero(self.supervised))


class Examples(Sequence[Encoded]):
    """Examples that are made when they are asked for, out of an Arrow table in memory or in a file.

    `input_ids` are those of all examples one after another, (tokens,); `lengths` and `learned` how many tokens each has
    and how many of them are to be predicted, (examples,).
    """

    def __init__(self, table: pa.RecordBatch) -> None:
        """`table` has the columns of SCHEMA and is no slice of a longer one; no example is empty."""
        self.table = table
        ids, marks = table["input_ids"], table["supervised"]
        self.input_ids: NDArray[np.int32] = _viewed(ids.values, np.int32)
        self._supervised: NDArray[np.bool_] = _viewed(marks.values, np.bool_)
        self._bounds: NDArray[np.int64] = _viewed(ids.offsets, np.int64)
        self._prompts: NDArray[np.int64] = _viewed(table["prompt_length"], np.int64)
        self._answers: Any = table["answer"]
        self._places: Any = table["place"]
        self._groups: NDArray[np.int64] = _viewed(table["group"], np.int64)
        self.lengths: NDArray[np.int64] = np.diff(self._bounds)
        self.learned: NDArray[np.int64] = np.add.reduceat(self._supervised, self._bounds[:-1], dtype=np.int64)

    @classmethod
    def of(cls, encoded: Sequence[Encoded]) -> Examples:
        bounds = pa.array(np.cumsum([0, *(len(each.input_ids) for each in encoded)]))
        ids = np.concatenate([np.empty(0, np.int32), *(each.input_ids for each in encoded)])
        marks = np.concatenate([np.empty(0, np.bool_), *(each.supervised for each in encoded)])
        columns = [
            pa.LargeListArray.from_arrays(bounds, pa.array(ids)),
            pa.LargeListArray.from_arrays(bounds, pa.array(marks.view(np.uint8))),
            pa.array([each.prompt_length for each in encoded], pa.int64()),
            pa.array([each.answer for each in encoded], pa.large_string()),
            pa.array([each.place for each in encoded], pa.large_string()),
            pa.array([each.group for each in encoded], pa.int64()),
        ]
        return cls(pa.RecordBatch.from_arrays(columns, schema=SCHEMA))

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, index: int) -> Encoded: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Encoded, ...]: ...

    def __getitem__(self, index: int | slice) -> Encoded | tuple[Encoded, ...]:
        if isinstance(index, slice):
            return tuple(self[each] for each in range(len(self))[index])
        place = range(len(self))[index]
        begin, end = self._bounds[place : place + 2].tolist()
        return Encoded(
            self.input_ids[begin:end],
            self._supervised[begin:end],
            int(self._prompts[place]),
            self._answers[place].as_py(),
            self._places[place].as_py(),
            int(self._groups[place]),
        )


def _viewed(values: pa.Array, kind: type[Kind]) -> NDArray[Kind]:
    # Arrow's own way to NumPy loads pandas first, which takes longer than to open a data set.
    return np.frombuffer(values.buffers()[1], kind, len(values)) if len(values) else np.empty(0, kind)


@dataclass(frozen=True)
class Counts:
    """What became of the rows of a data set: of `rewritten` ones every answer became one of `copies`; `divided` texts
    became `pieces`."""

    read: int = 0
    duplicates: int = 0
    leaked: int = 0
    not_sampled: int = 0
    truncated: int = 0
    dropped: int = 0
    rewritten: int = 0
    copies: int = 0
    turns_cut: int = 0
    unusable: int = 0
    marked_bad: int = 0
    divided: int = 0
    pieces: int = 0


@dataclass(frozen=True)
class Dataset:
    """Examples by split, in an order that does not depend on the order of rows.

    `fingerprint` is equal for equal rows of equal shape, with an equal template where one was given. `notes` say in
    words what was recognised, cut and dropped. `stop_ids` are the tokens that end an answer. `template` says how rows
    were written as text; `chat_template` is what writes them so, in jinja, where the model does not bring it. `origin`
    is equal for data sets that were made from the same by the same means.
    """

    name: str
    shape: str
    train: Examples
    validation: Examples
    test: Examples
    fingerprint: str
    notes: tuple[str, ...]
    stop_ids: tuple[int, ...] = ()
    template: str = ""
    chat_template: str = ""
    max_length: int = 0
    counts: Counts = field(default_factory=Counts)
    origin: str = ""
