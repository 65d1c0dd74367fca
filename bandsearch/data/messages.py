"""Messages of a conversation, read from what data sets write them as."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "ai": "assistant",
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
_THOUGHT_BEGINS, _THOUGHT_ENDS = "<think>", "</think>"
_EXTRAS = ("name", "tool_calls", "tool_call_id")
# A thought in a field of its own, as data sets call it, in order of precedence.
_THOUGHTS = ("reasoning_content", "thinking", "reasoning")
# OpenAI's files say `weight`, others `train`.
_MARKS = ("weight", "train")
# What holds nothing is not named where it is not used.
NOTHING: tuple[Any, ...] = (None, "", [], {})


@dataclass(frozen=True)
class Message:
    """`role` is system, user, assistant or tool. `extras` are what chat templates know besides, as tool calls.

    An assistant's message that is not `learned` is context.
    """

    role: str
    content: str
    extras: Mapping[str, Any] = field(default_factory=dict)
    learned: bool = True

    @property
    def thought(self) -> str:
        """What is thought before the answer, in a field of its own or within the content."""
        within = self.content.rpartition(_THOUGHT_ENDS)[0].removeprefix(_THOUGHT_BEGINS)
        return str(self.extras.get("reasoning_content", within))

    @property
    def answer(self) -> str:
        """What is said behind the thought; of tool calls, beside which templates may leave it out, the first's name."""
        calls = self.extras.get("tool_calls")
        if not calls:
            return self.content.rpartition(_THOUGHT_ENDS)[2]
        function = calls[0].get("function") if isinstance(calls[0], dict) else None
        return str(function.get("name", "")) if isinstance(function, dict) else ""


class UnusableError(Exception):
    """Why one row cannot be used; becomes a Problem at the row's place."""


def messages_of(value: Any, column: str, ignored: dict[str, None]) -> tuple[Message, ...]:
    """A list of messages, also one written as JSON text, as in CSV and some parquet files. Raises UnusableError.

    System messages that say nothing are left out. Adds to `ignored` what messages hold that becomes no part of them.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise UnusableError(f"{column!r} is a list in text, but not in JSON ({error})") from error
    if not isinstance(value, list | tuple):
        raise UnusableError(f"{column!r} is {kind_of(value)}, not a list of messages")
    if not value:
        raise UnusableError(f"{column!r} is empty")
    read = (_message(each, f"{column}[{index}]", ignored) for index, each in enumerate(value))
    return tuple(message for message in read if message.content or message.role != "system")


def text_of(value: Any, column: str) -> str:
    """What a cell says; whole numbers, true and false as JSON writes them. Raises UnusableError where it is no text."""
    if isinstance(value, int):
        return json.dumps(value)
    if not isinstance(value, str):
        raise UnusableError(f"{column!r} is {kind_of(value)}, not text")
    if not value.strip():
        raise UnusableError(f"{column!r} is empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UnusableError(f"{column!r} holds half of a surrogate pair (character {error.start + 1})") from error
    return value


def with_arguments(calls: Iterable[Any], convert: Callable[[Any], Any]) -> list[Any]:
    """Tool calls with their arguments converted."""

    def converted(call: Any) -> Any:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or "arguments" not in function:
            return call
        return {**call, "function": {**function, "arguments": convert(function["arguments"])}}

    return [converted(call) for call in calls]


def listed(value: Any) -> tuple[Any, ...]:
    """A list, also one written as JSON text; anything else is no list."""
    value = loaded(value)
    return tuple(value) if isinstance(value, list) else ()


def loaded(value: Any) -> Any:
    """What JSON text says; anything else, also text that is no JSON, is what it is."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value


def kind_of(value: Any) -> str:
    if value is None:
        return "null"
    kinds = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return kinds.get(type(value), "text" if isinstance(value, str) else f"a {type(value).__name__}")


def _message(value: Any, where: str, ignored: dict[str, None]) -> Message:
    if not isinstance(value, dict):
        raise UnusableError(f"{where} is {kind_of(value)}, not a message with role and content")
    role_key, content_key = ("from", "value") if "from" in value else ("role", "content")
    said = value.get(role_key)
    named = said.strip().lower() if isinstance(said, str) else ""
    role = _ROLES.get(named)
    if role is None:
        raise UnusableError(f"{where} has the {role_key} {said!r}, none of system, user, assistant, tool")
    known = {role_key, content_key, *_EXTRAS, *_MARKS}
    extras = {key: value[key] for key in _EXTRAS if value.get(key)}
    if "tool_calls" in extras:
        extras["tool_calls"] = with_arguments(listed(extras["tool_calls"]), _parsed)
    thought = next((key for key in _THOUGHTS if isinstance(value.get(key), str) and value[key].strip()), None)
    if thought:
        known.add(thought)
        # Some templates read it by the name it came with, most by this one.
        extras |= {thought: value[thought], _THOUGHTS[0]: value[thought]}
    ignored |= dict.fromkeys(str(key) for key, each in value.items() if key not in known and each not in NOTHING)
    content = value.get(content_key)
    if named == "function_call" and (calls := _calls(content)):
        content, extras["tool_calls"] = "", calls
    if content_key not in value and not extras.get("tool_calls"):
        raise UnusableError(f"{where} has no {content_key!r}")
    if isinstance(content, list):
        content = _parts(content, where)
    learned = value.get("weight") != 0 and value.get("train") is not False
    silent = content is None or (isinstance(content, str) and not content.strip())
    if silent and (role == "system" or extras.get("tool_calls") or (role == "tool" and content is not None)):
        return Message(role, "", extras, learned)
    return Message(role, text_of(content, f"{where}.{content_key}"), extras, learned)


def _calls(content: Any) -> list[Any]:
    """What a turn of ShareGPT that is a call says, `{"name": ..., "arguments": ...}` or a list of these, as tool calls;
    nothing where it says something else."""
    value = loaded(content)
    calls = value if isinstance(value, list) else [value]
    if not all(isinstance(call, dict) and {"name"} <= call.keys() <= {"name", "arguments"} for call in calls):
        return []
    functions = ({"name": call["name"], "arguments": call.get("arguments", {})} for call in calls)
    return with_arguments(({"type": "function", "function": function} for function in functions), _parsed)


def _parsed(arguments: Any) -> Any:
    """Arguments as an object: those in OpenAI's form, JSON text, templates would write as JSON once more."""
    value = loaded("{}" if arguments == "" else arguments)
    return value if isinstance(value, dict) else arguments


def _parts(parts: list[Any], where: str) -> str:
    """Content given in parts, as in OpenAI's format; only text can be learned from."""
    for part in parts:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else kind_of(part)
            raise UnusableError(f"{where} holds content of type {kind!r}; only text is supported")
    return "".join(part["text"] for part in parts)
