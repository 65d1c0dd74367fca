"""Shapes of rows: recognised by their columns, and turned into conversations or plain text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from typing import Any

from bandsearch.data.cells import Cells, Use, fold
from bandsearch.data.messages import NOTHING, Message, UnusableError, kind_of, listed, messages_of, text_of
from bandsearch.data.problems import Problem, refuse, too_many
from bandsearch.data.reading import Row
from bandsearch.values.errors import DataError

__all__ = ["Example", "Message", "Recognised", "Shape", "hides_answers", "recognise"]


class Shape(StrEnum):
    CHAT = "chat messages"
    SHAREGPT = "sharegpt"
    PROMPT = "prompt/completion"
    ALPACA = "alpaca"
    QUESTION = "question/answer"
    TEXT = "plain text"


@dataclass(frozen=True)
class Example:
    """A conversation that ends with an assistant's message, or plain `text` (then there are no messages).

    `tools` are offered to the chat template. `turns_cut` messages were left out: before the first question, or after
    the last answer.
    """

    place: str
    messages: tuple[Message, ...] = ()
    text: str = ""
    tools: tuple[Any, ...] = ()
    turns_cut: int = 0

    @cached_property
    def answers(self) -> tuple[int, ...]:
        """Which messages are to be learned."""
        return tuple(i for i, m in enumerate(self.messages) if m.role == "assistant" and m.learned)


@dataclass(frozen=True)
class Recognised:
    """`columns` hold questions and answers; `unused` are columns, and `ignored` keys of messages, that hold something
    and became part of no example.

    The rows of `problems` are left out, and so are `marked_bad` ones whose answer is said to be a bad one.
    """

    shape: Shape
    columns: tuple[str, ...]
    examples: tuple[Example, ...]
    unused: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()
    marked_bad: int = 0


# Classification: who has labels wants them learned.
TEXT_AND_LABEL = ("text", "label")
# In order of precedence: alpaca files often bring a finished `text` column too, chat files a `prompt`; names that say
# little come last.
_COLUMNS: tuple[tuple[Shape, tuple[str, ...]], ...] = (
    (Shape.CHAT, ("messages",)),
    (Shape.SHAREGPT, ("conversations",)),
    (Shape.PROMPT, ("prompt", "completion")),
    (Shape.PROMPT, ("prompt", "response")),
    (Shape.ALPACA, ("instruction", "output")),
    (Shape.ALPACA, ("instruction", "response")),
    (Shape.ALPACA, ("instruction", "answer")),
    (Shape.QUESTION, ("question", "answer")),
    (Shape.QUESTION, ("question", "response")),
    (Shape.QUESTION, ("query", "response")),
    (Shape.QUESTION, ("problem", "solution")),
    (Shape.PROMPT, ("prompt", "answer")),
    (Shape.PROMPT, ("prompt", "output")),
    (Shape.PROMPT, ("dialogue", "summary")),
    (Shape.PROMPT, ("document", "summary")),
    (Shape.PROMPT, ("input", "output")),
    (Shape.PROMPT, ("source", "target")),
    (Shape.PROMPT, TEXT_AND_LABEL),
    (Shape.TEXT, ("text",)),
)
_ACCEPTED = (
    "Accepted are the columns messages (role, content), conversations (from, value), text, or a pair such as "
    "prompt + completion, instruction (+ input) + output, question + answer, input + output; say which of yours are "
    "these: --columns article=prompt,highlights=completion."
)
# Pairs of a better and a worse answer: as TRL calls them, and as OpenAI does.
_PREFERENCES = (("chosen", "rejected"), ("preferred_output", "non_preferred_output"))
# TRL's unpaired preferences: beside a pair of these stands in `label` whether the answer is a good one.
_JUDGED = (("prompt", "completion"), ("prompt", "response"))
_GOOD, _BAD = ("true", "1", "1.0"), ("false", "0", "0.0")
# What stands for an answer that is kept secret; a class of -1 is one that is not known.
_HIDDEN = (*NOTHING, -1, "-1")
# What may stand beside questions and answers, the first that holds something.
_SYSTEM = ("system", "system_prompt")
_CONTEXT = ("input", "context")

_Match = tuple[Shape, tuple[str, ...]]


def recognise(name: str, rows: Sequence[Row], like: Recognised | None = None) -> Recognised:
    """The shape of the data set `name` and its rows as examples. Raises DataError where many rows are unusable.

    The shape is that of most rows, or the one of `like`, an earlier part of the same data set.
    """
    matches = _matches(rows)
    use = Use()
    found = Counter(match for match in matches if match)
    if not found:
        names = list(dict.fromkeys(str(column) for row in rows[:1000] for column in row.values))
        if pair := next((pair for pair in _PREFERENCES if set(pair) <= set(map(fold, names))), None):
            raise _preferences(name, rows, *pair)
        shown = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
        raise DataError(f"{name} has columns of no known shape: {shown or 'none'}.", _ACCEPTED)
    shape, columns = (like.shape, like.columns) if like else max(found, key=found.__getitem__)
    examples: list[Example] = []
    problems: list[Problem] = []
    judged, marked_bad = _are_judged(rows, matches), 0
    for row, match in zip(rows, matches, strict=True):
        try:
            if row.problem:
                raise UnusableError(row.problem)
            if match is None or match[0] is not shape:
                raise UnusableError(_mismatch(row, match, shape, columns))
            if judged and _is_bad(row):
                marked_bad += 1
                continue
            examples.append(_READERS[shape](row.place, Cells(row.values, use), match[1]))
        except UnusableError as reason:
            problems.append(Problem(row.place, str(reason)))
    if too_many(problems, len(rows)):
        raise refuse(name, problems, len(rows), "Mend or remove these rows.")
    unused = _unused(rows, use.columns | {"label"} if marked_bad else use.columns)
    return Recognised(shape, columns, tuple(examples), unused, tuple(use.ignored), tuple(problems), marked_bad)


def hides_answers(rows: Sequence[Row], like: Recognised) -> bool:
    """Whether hardly any of `rows`, which ask what those of `like` ask, has an answer: public test sets keep them
    secret."""
    answered = sum(
        not _is_unanswered(row, match[1] if match and match[0] is like.shape else like.columns)
        for row, match in zip(rows, _matches(rows), strict=True)
    )
    return 20 * answered <= len(rows)


def _is_unanswered(row: Row, columns: tuple[str, ...]) -> bool:
    values = _folded(row)
    if len(columns) > 1:
        answer = values.get(columns[1])
        return columns[0] in values and (answer.strip() if isinstance(answer, str) else answer) in _HIDDEN
    try:
        return all(message.role != "assistant" for message in messages_of(values.get(columns[0]), columns[0], {}))
    except UnusableError:
        return False


def _preferences(name: str, rows: Sequence[Row], better: str, worse: str) -> DataError:
    """Preference data: what of it can be learned is told by what stands beside the answer that was chosen."""
    values = next(folded for row in rows if better in (folded := _folded(row)))
    # A chosen conversation may begin with the question; a preferred output is an answer alone.
    whole = "messages" if better == "chosen" and len(listed(values[better])) > 1 else "text"
    ours = next((columns[1] for _, columns in _COLUMNS if len(columns) > 1 and columns[0] in values), whole)
    return DataError(
        f"{name} is preference data ({better}, {worse}), which is not learned from as such.",
        f"--columns {better}={whole if whole == 'messages' else ours} learns the {better.split('_')[0]} ones.",
    )


def _are_judged(rows: Sequence[Row], matches: Sequence[_Match | None]) -> bool:
    """Whether all but a few rows are marked as good or bad answers."""
    pairs = [row for row, match in zip(rows, matches, strict=True) if match and match[1] in _JUDGED]
    marks = [str(_folded(row).get("label")).lower() for row in pairs]
    unmarked = sum(mark not in (*_GOOD, *_BAD) for mark in marks)
    return any(mark in _BAD for mark in marks) and 20 * unmarked <= len(marks)


def _is_bad(row: Row) -> bool:
    """Raises UnusableError where it is not said."""
    label = _folded(row).get("label")
    if str(label).lower() not in (*_GOOD, *_BAD):
        raise UnusableError(f"'label' is {kind_of(label)}, where others say whether the answer is good")
    return str(label).lower() in _BAD


def _folded(row: Row) -> dict[str, Any]:
    return {fold(column): value for column, value in row.values.items()}


def _unused(rows: Sequence[Row], used: set[str]) -> tuple[str, ...]:
    filled = {column: None for row in rows for column, value in row.values.items() if value not in NOTHING}
    return tuple(str(column) for column in filled if fold(column) not in used)


def _matches(rows: Sequence[Row]) -> list[_Match | None]:
    known: dict[tuple[str, ...], _Match | None] = {}
    matches = []
    for row in rows:
        columns = tuple(row.values)
        if columns not in known:
            have = {fold(column) for column in columns}
            known[columns] = next((match for match in _COLUMNS if have.issuperset(match[1])), None)
        matches.append(known[columns])
    return matches


def _mismatch(row: Row, match: _Match | None, shape: Shape, columns: tuple[str, ...]) -> str:
    if match:
        return f"this row is {match[0]} ({', '.join(match[1])}), most others are {shape} ({', '.join(columns)})"
    have = {fold(column) for column in row.values}
    missing = " and ".join(repr(column) for column in columns if column not in have)
    return f"has no {missing} (only {', '.join(sorted(have)) or 'an empty object'})"


def _from_messages(place: str, cells: Cells, columns: tuple[str, ...]) -> Example:
    messages = cells.messages(cells.take(columns[0]), columns[0])
    # Beside messages, `input` is usually the same conversation once more.
    return _conversation(place, _about(messages, cells.beside(["context"])), cells)


def _from_pair(place: str, cells: Cells, columns: tuple[str, ...]) -> Example:
    asked, answered = (cells.take(column) for column in columns)
    # In OpenAI's preference data the conversation stands within the question, and so do the tools that it may use.
    if isinstance(asked, dict) and isinstance(asked.get("messages"), list):
        cells.offer(asked.get("tools"))
        asked = asked["messages"]
    context = [column for column in _CONTEXT if column not in columns]
    if isinstance(asked, list):
        given = tuple(replace(message, learned=False) for message in cells.messages(asked, columns[0]))
        before = _about(given, cells.beside(context))
    else:
        question = Message("user", text_of(asked, columns[0]))
        before = (*cells.history(), *_about((question,), cells.beside(context), columns[0] == "instruction"))
    if isinstance(answered, list):
        return _conversation(place, (*before, *cells.messages(answered, columns[1])), cells)
    return _conversation(place, (*before, Message("assistant", text_of(answered, columns[1]))), cells)


def _from_text(place: str, cells: Cells, columns: tuple[str, ...]) -> Example:
    return Example(place, text=text_of(cells.take("text"), "text"))


_READERS: Mapping[Shape, Callable[[str, Cells, tuple[str, ...]], Example]] = {
    Shape.CHAT: _from_messages,
    Shape.SHAREGPT: _from_messages,
    Shape.PROMPT: _from_pair,
    Shape.ALPACA: _from_pair,
    Shape.QUESTION: _from_pair,
    Shape.TEXT: _from_text,
}


def _about(messages: tuple[Message, ...], context: str, always: bool = False) -> tuple[Message, ...]:
    """With `context` behind the first question, unless it is said already: prompts are often written from it.

    An instruction gets its input `always`, because a short one may occur in it by chance.
    """
    if not context or (not always and any(context in message.content for message in messages)):
        return messages
    first = next((i for i, message in enumerate(messages) if message.role == "user"), None)
    if first is None:
        return messages
    asked = replace(messages[first], content=f"{messages[first].content}\n\n{context}")
    return (*messages[:first], asked, *messages[first + 1 :])


def _conversation(place: str, messages: tuple[Message, ...], cells: Cells) -> Example:
    """Starts with the first question and ends with the last answer: what lies outside cannot be learned."""
    if all(message.role != "system" for message in messages) and (system := cells.beside(_SYSTEM)):
        messages = (Message("system", system), *messages)
    roles = [message.role for message in messages]
    answers = Example(place, messages).answers
    if not answers:
        raise UnusableError("no message of an assistant, so there is nothing to learn")
    last = answers[-1] + 1
    opening = 0
    while opening < len(roles) and roles[opening] == "system":
        opening += 1
    first = opening
    while roles[first] == "assistant" and first < last - 1:
        first += 1
    if roles[first] == "assistant":
        raise UnusableError("the conversation has no question before its answer")
    kept = messages[:opening] + messages[first:last]
    return Example(place, kept, tools=cells.tools(), turns_cut=len(messages) - len(kept))
