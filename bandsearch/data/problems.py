"""What is wrong with rows of a data set: collected, then reported together with their places. A few are left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bandsearch.values.errors import DataError

_SHOWN = 5
# Rows that may be left out: three, or one in twenty where those are more; but never more than one in five.
_FEW, _SHARE, _MOST = 3, 20, 5


@dataclass(frozen=True)
class Problem:
    """`place` is where a person finds the row: "my.jsonl:17", "my.csv row 4"."""

    place: str
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"


def refuse(name: str, problems: Sequence[Problem], rows: int, remedy: str) -> DataError:
    """One error for all `problems` among `rows` rows of the data set `name`: the first few, and how many there are."""
    if len(problems) == 1:
        return DataError(f"{problems[0]}.", remedy)
    listed = [f"  {problem}" for problem in problems[:_SHOWN]]
    if len(problems) > _SHOWN:
        listed.append(f"  … and {len(problems) - _SHOWN:,} more")
    return DataError(f"{name}: {len(problems):,} of {rows:,} rows cannot be used:\n" + "\n".join(listed), remedy)


def too_many(problems: Sequence[Problem], rows: int) -> bool:
    """Whether `problems` among `rows` rows are a mistake in the data set, not a few bad rows to do without."""
    return len(problems) > max(rows // _SHARE, min(_FEW, rows // _MOST))


def left_out(problems: Sequence[Problem]) -> str:
    """A note that names the first few rows that were left out."""
    listed = "; ".join(map(str, problems[:_SHOWN]))
    more = f"; and {len(problems) - _SHOWN:,} more" if len(problems) > _SHOWN else ""
    count = "1 row that cannot be used is" if len(problems) == 1 else f"{len(problems):,} rows that cannot be used are"
    return f"{count} left out: {listed}{more}."
