"""Encoded examples: one as the engine trains on it, and many in a few long arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

SCHEMA = pa.schema(
    {
        "input_ids": pa.large_list(pa.int32()),
        # A byte each: Arrow's own truth values are bits, which NumPy cannot view.
        "supervised": pa.large_list(pa.uint8()),
        "prompt_length": pa.int64(),
        "answer": pa.large_string(),
        "place": pa.large_string(),
    }
)


@dataclass(frozen=True, eq=False)
class Encoded:
    """One example as the engine trains on it.

    `input_ids` and `supervised` have the shape (tokens,): position i is true if token i is to be predicted (never the
    first). The first `prompt_length` tokens go up to the last answer and `answer` is its text, for generation, tool
    calls as the template writes them; 0 and empty for plain text, which asks nothing. `place` is where the row came
    from.
    """

    input_ids: NDArray[np.int32]
    supervised: NDArray[np.bool_]
    prompt_length: int
    answer: str
    place: str

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
        """`table` has the columns of SCHEMA; no example is empty."""
        self.table = table
        ids, marks = table["input_ids"], table["supervised"]
        self.input_ids: NDArray[np.int32] = ids.values.to_numpy()
        self._supervised: NDArray[np.bool_] = marks.values.to_numpy().view(np.bool_)
        self._bounds: NDArray[np.int64] = ids.offsets.to_numpy()
        self._prompts: NDArray[np.int64] = table["prompt_length"].to_numpy()
        self._answers: Any = table["answer"]
        self._places: Any = table["place"]
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
        )
