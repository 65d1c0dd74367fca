"""Shapes of rows: recognised by their columns, and turned into conversations or plain text."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from bandsearch.data.problems import Problem, refuse
from bandsearch.data.reading import Row
from bandsearch.values.errors import DataError


class Shape(StrEnum):
    CHAT = "chat messages"
    SHAREGPT = "sharegpt"
    PROMPT = "prompt/completion"
    ALPACA = "alpaca"
    QUESTION = "question/answer"
    TEXT = "plain text"


@dataclass(frozen=True)
class Message:
    """`role` is system, user, assistant or tool. `extras` are what chat templates know besides, as tool calls."""

    role: str
    content: str
    extras: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Example:
    """A conversation that ends with an assistant's message, or plain `text` (then there are no messages).

    The first `given` messages are context: assistant messages among them are not learned. `tools` are offered to the
    chat template. `turns_cut` messages were left out: before the first question, or after the last answer.
    """

    place: str
    messages: tuple[Message, ...] = ()
    text: str = ""
    given: int = 0
    tools: tuple[Any, ...] = ()
    turns_cut: int = 0

    @property
    def answers(self) -> tuple[int, ...]:
        """Which messages are to be learned."""
        return tuple(i for i, m in enumerate(self.messages) if m.role == "assistant" and i >= self.given)


@dataclass(frozen=True)
class Recognised:
    shape: Shape
    columns: tuple[str, ...]
    examples: tuple[Example, ...]


# In order of precedence: alpaca files often bring a finished `text` column too, chat files a `prompt`.
_COLUMNS: tuple[tuple[Shape, tuple[str, ...]], ...] = (
    (Shape.CHAT, ("messages",)),
    (Shape.SHAREGPT, ("conversations",)),
    (Shape.PROMPT, ("prompt", "completion")),
    (Shape.PROMPT, ("prompt", "response")),
    (Shape.ALPACA, ("instruction", "output")),
    (Shape.ALPACA, ("instruction", "response")),
    (Shape.QUESTION, ("question", "answer")),
    (Shape.TEXT, ("text",)),
)
_ACCEPTED = (
    "Accepted are the columns messages (role, content), conversations (from, value), prompt + completion, "
    "instruction (+ input) + output, question + answer, or text."
)
_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "ipython": "tool",
    "observation": "tool",
    "function_response": "tool",
}
_EXTRAS = ("name", "tool_calls", "tool_call_id", "reasoning_content")

_Values = Mapping[str, Any]
_Match = tuple[Shape, tuple[str, ...]]


class _UnusableError(Exception):
    """Why one row cannot be used; becomes a Problem at the row's place."""


def recognise(name: str, rows: Sequence[Row], like: Recognised | None = None) -> Recognised:
    """The shape of the data set `name` and its rows as examples. Raises DataError that lists all unusable rows.

    The shape is that of most rows, or the one of `like`, an earlier part of the same data set.
    """
    matches = _matches(rows)
    found = Counter(match for match in matches if match)
    if not found:
        names = list(dict.fromkeys(str(column) for row in rows[:1000] for column in row.values))
        shown = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
        raise DataError(f"{name} has columns of no known shape: {shown or 'none'}.", _ACCEPTED)
    shape, columns = (like.shape, like.columns) if like else max(found, key=found.__getitem__)
    examples: list[Example] = []
    problems: list[Problem] = []
    for row, match in zip(rows, matches, strict=True):
        try:
            if match is None or match[0] is not shape:
                raise _UnusableError(_mismatch(row, match, shape, columns))
            examples.append(_READERS[shape](row.place, _folded(row.values), match[1]))
        except _UnusableError as reason:
            problems.append(Problem(row.place, str(reason)))
    if problems:
        raise refuse(name, problems, len(rows), "Mend or remove these rows.")
    return Recognised(shape, columns, tuple(examples))


def _matches(rows: Sequence[Row]) -> list[_Match | None]:
    known: dict[tuple[str, ...], _Match | None] = {}
    matches = []
    for row in rows:
        columns = tuple(row.values)
        if columns not in known:
            have = {_fold(column) for column in columns}
            known[columns] = next((match for match in _COLUMNS if have.issuperset(match[1])), None)
        matches.append(known[columns])
    return matches


def _mismatch(row: Row, match: _Match | None, shape: Shape, columns: tuple[str, ...]) -> str:
    if match:
        return f"this row is {match[0]} ({', '.join(match[1])}), most others are {shape} ({', '.join(columns)})"
    have = {_fold(column) for column in row.values}
    missing = " and ".join(repr(column) for column in columns if column not in have)
    return f"has no {missing} (only {', '.join(sorted(have)) or 'an empty object'})"


def _fold(column: str) -> str:
    return str(column).strip().lower()


def _folded(values: _Values) -> _Values:
    return {_fold(column): value for column, value in values.items()}


def _from_messages(place: str, values: _Values, columns: tuple[str, ...]) -> Example:
    return _conversation(place, _messages(values[columns[0]], columns[0]), values)


def _from_prompt(place: str, values: _Values, columns: tuple[str, ...]) -> Example:
    prompt, completion = (values[column] for column in columns)
    asked = _messages(prompt, "prompt") if isinstance(prompt, list) else (_said("user", values, "prompt"),)
    if isinstance(completion, list):
        answered = _messages(completion, columns[1])
    else:
        answered = (_said("assistant", values, columns[1]),)
    return _conversation(place, (*asked, *answered), values, given=len(asked))


def _from_alpaca(place: str, values: _Values, columns: tuple[str, ...]) -> Example:
    instruction, output = (_text(values, column) for column in columns)
    extra = next((column for column in ("input", "context") if values.get(column)), None)
    question = f"{instruction}\n\n{_text(values, extra)}" if extra else instruction
    system = (_said("system", values, "system"),) if values.get("system") else ()
    return Example(place, (*system, Message("user", question), Message("assistant", output)))


def _from_question(place: str, values: _Values, columns: tuple[str, ...]) -> Example:
    return Example(place, (_said("user", values, "question"), _said("assistant", values, "answer")))


def _from_text(place: str, values: _Values, columns: tuple[str, ...]) -> Example:
    return Example(place, text=_text(values, "text"))


_READERS: Mapping[Shape, Callable[[str, _Values, tuple[str, ...]], Example]] = {
    Shape.CHAT: _from_messages,
    Shape.SHAREGPT: _from_messages,
    Shape.PROMPT: _from_prompt,
    Shape.ALPACA: _from_alpaca,
    Shape.QUESTION: _from_question,
    Shape.TEXT: _from_text,
}


def _conversation(place: str, messages: tuple[Message, ...], values: _Values, given: int = 0) -> Example:
    """Starts with the first question and ends with the last answer: what lies outside cannot be learned."""
    roles = [message.role for message in messages]
    if "assistant" not in roles[given:]:
        raise _UnusableError("no message of an assistant, so there is nothing to learn")
    last = len(roles) - roles[::-1].index("assistant")
    opening = 0
    while opening < len(roles) and roles[opening] == "system":
        opening += 1
    first = opening
    while roles[first] == "assistant" and first < last - 1:
        first += 1
    if roles[first] == "assistant":
        raise _UnusableError("the conversation has no question before its answer")
    kept = messages[:opening] + messages[first:last]
    return Example(
        place,
        kept,
        given=max(0, given - (first - opening)),
        tools=_listed(values.get("tools")),
        turns_cut=len(messages) - len(kept),
    )


def _messages(value: Any, column: str) -> tuple[Message, ...]:
    # In CSV, and in some parquet files, a list of messages is written as JSON text.
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = _listed(value)
    if not isinstance(value, list | tuple):
        raise _UnusableError(f"{column!r} is {_kind(value)}, not a list of messages")
    if not value:
        raise _UnusableError(f"{column!r} is empty")
    return tuple(_message(each, f"{column}[{index}]") for index, each in enumerate(value))


def _message(value: Any, where: str) -> Message:
    if not isinstance(value, dict):
        raise _UnusableError(f"{where} is {_kind(value)}, not a message with role and content")
    role_key, content_key = ("from", "value") if "from" in value else ("role", "content")
    said = value.get(role_key)
    role = _ROLES.get(said.strip().lower()) if isinstance(said, str) else None
    if role is None:
        raise _UnusableError(f"{where} has the {role_key} {said!r}, none of system, user, assistant, tool")
    extras = {key: value[key] for key in _EXTRAS if value.get(key)}
    content = value.get(content_key)
    if content is None and content_key not in value and not extras.get("tool_calls"):
        raise _UnusableError(f"{where} has no {content_key!r}")
    if isinstance(content, list):
        content = _parts(content, where)
    if content in (None, "") and extras.get("tool_calls"):
        return Message(role, "", extras)
    if role == "tool" and content == "":
        return Message(role, "", extras)
    return Message(role, _text({f"{where}.{content_key}": content}, f"{where}.{content_key}"), extras)


def _parts(parts: list[Any], where: str) -> str:
    """Content given in parts, as in OpenAI's format; only text can be learned from."""
    for part in parts:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else _kind(part)
            raise _UnusableError(f"{where} holds content of type {kind!r}; only text is supported")
    return "".join(part["text"] for part in parts)


def _said(role: str, values: _Values, column: str) -> Message:
    return Message(role, _text(values, column))


def _text(values: _Values, column: str) -> str:
    value = values[column]
    if not isinstance(value, str):
        raise _UnusableError(f"{column!r} is {_kind(value)}, not text")
    if not value.strip():
        raise _UnusableError(f"{column!r} is empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise _UnusableError(f"{column!r} holds half of a surrogate pair (character {error.start + 1})") from error
    return value


def _listed(value: Any) -> tuple[Any, ...]:
    """A list, also one written as JSON text; anything else is no list."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return ()
    return tuple(value) if isinstance(value, list) else ()


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    kinds = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return kinds.get(type(value), "text" if isinstance(value, str) else f"a {type(value).__name__}")
