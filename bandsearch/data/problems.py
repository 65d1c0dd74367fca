"""What is wrong with rows of a data set: collected, then reported together with their places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bandsearch.values.errors import DataError

_SHOWN = 5


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
