"""The cells of a row: what an example is made of, and what may stand beside that."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bandsearch.data.messages import Message, UnusableError, kind_of, listed, loaded, messages_of, text_of


@dataclass(frozen=True)
class Use:
    """What of a data set becomes part of examples, filled while they are made: `columns` do, `ignored` keys of messages
    do not."""

    columns: set[str] = field(default_factory=set)
    ignored: dict[str, None] = field(default_factory=dict)


class Cells:
    """The cells of one row by column. Adds to `use` what an example is made of."""

    def __init__(self, values: Mapping[str, Any], use: Use) -> None:
        self._values = {fold(column): value for column, value in values.items()}
        self._used, self._ignored = use.columns, use.ignored
        self._offered: Any = None

    def take(self, column: str) -> Any:
        self._used.add(column)
        return self._values[column]

    def beside(self, columns: Iterable[str]) -> str:
        """The text of the first of `columns` that holds any; a list of texts is one. Other values are left alone."""
        for column in columns:
            value = self._values.get(column)
            if isinstance(value, list) and all(isinstance(part, str) for part in value):
                value = "\n\n".join(value)
            if isinstance(value, str) and value.strip():
                self._used.add(column)
                return text_of(value, column)
        return ""

    def messages(self, value: Any, where: str) -> tuple[Message, ...]:
        return messages_of(value, where, self._ignored)

    def offer(self, tools: Any) -> None:
        """Tools that stand within another cell; those of a column of their own go first."""
        self._offered = tools

    def tools(self) -> tuple[Any, ...]:
        tools = listed(self._values.get("tools"))
        if tools:
            self._used.add("tools")
        return tuple(map(loaded, tools or listed(self._offered)))

    def history(self) -> tuple[Message, ...]:
        """Earlier turns: a list of [question, answer], or of messages; also as JSON text."""
        value = self._values.get("history")
        if value in (None, "", []):
            return ()
        self._used.add("history")
        turns = listed(value)
        if turns and all(isinstance(turn, dict) for turn in turns):
            return self.messages(list(turns), "history")
        if not turns and value != "[]":
            raise UnusableError(f"'history' is {kind_of(value)}, not a list of [question, answer]")
        for index, turn in enumerate(turns):
            if not isinstance(turn, list | tuple) or len(turn) != 2:
                raise UnusableError(f"history[{index}] is not a pair of question and answer")
        return tuple(
            Message(role, text_of(said, f"history[{index}]"))
            for index, turn in enumerate(turns)
            for role, said in zip(("user", "assistant"), turn, strict=True)
        )


def fold(column: str) -> str:
    """A column's name as it is compared: `Prompt ` is `prompt`."""
    return str(column).strip().lower()
