"""Templates: how a conversation is written as text, by a chat template of the model or of a person, or a plain one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from bandsearch.data.day import DAY_FIXED, on_the_day, writes_the_day
from bandsearch.data.messages import Message, with_arguments
from bandsearch.data.plain import AS_IT_IS, Style, style_of
from bandsearch.data.shapes import Example, Shape
from bandsearch.values.errors import UsageError
from bandsearch.values.spec import ChatTemplate

# The text of an example's first so many messages, followed by the opening of an answer if the last argument is true.
Render = Callable[[Example, int, bool], str]


class TemplateRefusedError(Exception):
    """The chat template does not accept a conversation; the message says why."""


@dataclass(frozen=True)
class Adaptation:
    """What has to be done to conversations before a chat template writes all of them; `reason` is for a note."""

    change: Callable[[tuple[Message, ...]], tuple[Message, ...]]
    reason: str


@dataclass(frozen=True)
class Template:
    """How conversations are written. `prefix` are the tokens put in front of everything; chat templates write theirs
    themselves. `render` writes examples after the `adaptations`, in this order. `ending` is text behind an answer that
    is not learned. `jinja` writes the same as a chat template, where the tokenizer does not bring it; empty where it
    does, or where conversations are not written by one. `notes` say what a person should know of it.
    """

    description: str
    render: Render
    prefix: tuple[int, ...] = ()
    adaptations: tuple[Adaptation, ...] = ()
    ending: str = ""
    jinja: str = ""
    notes: tuple[str, ...] = ()


CHAT_TEMPLATE = "the model's chat template"
SYSTEM_FOLDED = "the system message is written with the first question: the chat template has no place for it"
NEIGHBOURS_MERGED = "neighbouring messages of one role are written as one: the chat template refuses them"
ARGUMENTS_WRITTEN = "the arguments of tool calls are given as JSON text: the chat template takes no objects"
CALLS_AS_TEXT = "tool calls are written as JSON text: the chat template has no place for them"
_TOOL = {"name": "look_it_up", "description": "Looks it up.", "parameters": {"type": "object", "properties": {}}}
_CALLING = Message(
    "assistant",
    "",
    {"tool_calls": [{"id": "a1b2c3d4e", "type": "function", "function": {"name": _TOOL["name"], "arguments": {}}}]},
)
_SENTINEL = "Be brief and kind."
_QUESTION = Message("user", "question")
# What stands for turns in templates of tokenizers that have no special tokens for them.
_TURNS = ("[INST]",)
# What looks like a special token, for templates whose tokens the tokenizer may not have.
_MARK = re.compile(r"<[^<>\s]{1,40}>|\[/?[A-Z_]{2,20}\]")


def template_for(
    tokenizer: PreTrainedTokenizerBase,
    shape: Shape,
    examples: Sequence[Example],
    given: ChatTemplate | None = None,
) -> Template:
    """The `given` chat template, else the tokenizer's, else a plain one. Plain text gets none of them, nor do prompts
    that hold tokens for turns already: a template would wrap them once more. Raises UsageError where the given one does
    not parse."""
    beginning = _opening_tokens(tokenizer)
    unused = (f"{given.name} is not used.",) if given else ()
    if shape is Shape.TEXT:
        return Template("none (plain text)", lambda example, count, opened: example.text, beginning, notes=unused)
    marks = _marks(_chat_renderer(tokenizer, given)) if given else frozenset()
    if _already_formatted(tokenizer, examples, given, marks):
        described = "none (the prompts are written in the model's own turns already)"
        return Template(described, _plain_renderer(tokenizer, AS_IT_IS, ""), beginning, notes=unused)
    if given:
        return _given(tokenizer, given, marks, beginning)
    if tokenizer.chat_template:
        render = _chat_renderer(tokenizer)
        dated = (DAY_FIXED,) if writes_the_day(str(tokenizer.chat_template)) else ()
        return Template(CHAT_TEMPLATE, render, adaptations=_adaptations(render), notes=dated)
    style, end = style_of(shape, examples), tokenizer.eos_token or ""
    text = _beginning(tokenizer, beginning)
    jinja = "" if text is None else style.chat_template(end, text)
    return Template(str(style), _plain_renderer(tokenizer, style, end), beginning, jinja=jinja)


def _given(
    tokenizer: PreTrainedTokenizerBase, given: ChatTemplate, marks: frozenset[str], beginning: tuple[int, ...]
) -> Template:
    render = _chat_renderer(tokenizer, given)
    whole = _written(render, _QUESTION, Message("assistant", _SENTINEL))
    ending = whole.rpartition(_SENTINEL)[2] if _SENTINEL in whole else ""
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    # A server stops at tokens, not at text: behind the answer comes the end of text at once.
    if not ending.strip() or any(token in ending for token in added) or tokenizer.eos_token is None:
        ending = ""
    vocabulary = tokenizer.get_vocab()
    notes = [DAY_FIXED] if writes_the_day(given.text) else []
    if unknown := sorted(mark for mark in marks if mark not in vocabulary):
        learned = f", and answers end with {tokenizer.eos_token}" if ending else ""
        notes.append(f"Not in the tokenizer, so ordinary text to the model: {', '.join(unknown)}{learned}.")
    opening = tokenizer.decode(list(beginning))
    if whole and not whole.startswith(opening):
        notes.append(f"The chat template writes no {opening} in front, as the tokenizer does; nor will a server.")
    description = f"the chat template {given.name}"
    return Template(
        description, render, adaptations=_adaptations(render), ending=ending, jinja=given.text, notes=tuple(notes)
    )


def _already_formatted(
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    given: ChatTemplate | None,
    marks: frozenset[str],
) -> bool:
    """Whether more than half of the examples are a prompt with a special token inside and its completion."""
    named = {getattr(tokenizer, f"{name}_token", None) for name in ("bos", "eos", "pad", "unk")}
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    own = given.text if given else tokenizer.chat_template
    written = [turn for turn in _TURNS if turn in str(own or turn)]
    turns = [token for token in (*special, *written, *marks) if token not in named]
    prompts = [example.messages[0].content for example in examples if len(example.messages) == 2]
    return 2 * sum(any(token in prompt for token in turns) for prompt in prompts) > len(examples)


def _marks(render: Render) -> frozenset[str]:
    """What looks like a special token in a conversation that holds none itself."""
    system, answer = Message("system", _SENTINEL), Message("assistant", "answer")
    texts = (_written(render, *before, _QUESTION, answer, opened=True) for before in ((), (system,)))
    return frozenset(mark for text in texts for mark in _MARK.findall(text))


def _chat_renderer(tokenizer: PreTrainedTokenizerBase, given: ChatTemplate | None = None) -> Render:
    """Writes by the tokenizer's own chat template where none is `given`."""
    template = given.text if given else None

    def render(example: Example, count: int, opened: bool) -> str:
        messages = [_as_dict(message) for message in example.messages[:count]]
        tools = list(example.tools) or None
        try:
            text = tokenizer.apply_chat_template(
                messages,
                tools=tools,
                chat_template=on_the_day(tokenizer.get_chat_template(template, tools)),
                add_generation_prompt=opened,
                tokenize=False,
            )
        # Templates are programs: they raise on purpose (TemplateError) and by accident (the others).
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
            if given and isinstance(error, jinja2.TemplateSyntaxError):
                raise UsageError(
                    f"{given.name} does not parse as a jinja chat template (line {error.lineno}: {_sentence(error)}).",
                    "Mend it, or give another --template.",
                ) from error
            raise TemplateRefusedError(f"the chat template refuses this conversation ({_sentence(error)})") from error
        return str(text)

    return render


def _written(render: Render, *messages: Message, opened: bool = False, tools: tuple[Any, ...] = ()) -> str:
    """Nothing where the template refuses them."""
    try:
        return render(Example("", messages, tools=tools), len(messages), opened)
    except TemplateRefusedError:
        return ""


def _adaptations(render: Render) -> tuple[Adaptation, ...]:
    """What this chat template needs, found by trying it."""
    answer = Message("assistant", "answer")
    found = []
    # Some templates refuse a system message, others leave it out without a word.
    if _SENTINEL not in _written(render, Message("system", _SENTINEL), _QUESTION, answer):
        found.append(Adaptation(_fold_system, SYSTEM_FOLDED))
    if not _written(render, _QUESTION, _CALLING) and _written(render, _QUESTION, *_write_arguments((_CALLING,))):
        found.append(Adaptation(_write_arguments, ARGUMENTS_WRITTEN))
    elif not any(_writes_calls(render, tools) for tools in ((), ({"type": "function", "function": _TOOL},))):
        found.append(Adaptation(_write_calls, CALLS_AS_TEXT))
    if _written(render, _QUESTION, answer) and not _written(render, _QUESTION, _QUESTION, answer):
        found.append(Adaptation(_merge_neighbours, NEIGHBOURS_MERGED))
    return tuple(found)


def _fold_system(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The system message in front of the first user message, for templates such as Gemma's that know no system."""
    said = "\n\n".join(message.content for message in messages if message.role == "system")
    rest = [message for message in messages if message.role != "system"]
    if said and rest:
        rest[0] = replace(rest[0], content=f"{said}\n\n{rest[0].content}")
    return tuple(rest)


def _write_arguments(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Tool calls as OpenAI writes them, for templates that put the arguments together with other text."""

    def written(arguments: Any) -> Any:
        return json.dumps(arguments, ensure_ascii=False) if isinstance(arguments, dict) else arguments

    return tuple(
        replace(message, extras={**message.extras, "tool_calls": with_arguments(calls, written)})
        if (calls := message.extras.get("tool_calls"))
        else message
        for message in messages
    )


def _writes_calls(render: Render, tools: tuple[Any, ...]) -> bool:
    """Whether the name of a tool is written once more where it is called."""
    asked, called = (_written(render, *said, tools=tools) for said in ((_QUESTION,), (_QUESTION, _CALLING)))
    return called.count(str(_TOOL["name"])) > asked.count(str(_TOOL["name"]))


def _write_calls(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Tool calls as a part of what is said: one as an object with name and arguments, several as a list of them."""

    def written(message: Message) -> Message:
        extras = dict(message.extras)
        calls = extras.pop("tool_calls")
        functions = [call.get("function", call) if isinstance(call, dict) else call for call in calls]
        text = json.dumps(functions[0] if len(functions) == 1 else functions, ensure_ascii=False, default=str)
        return replace(message, content="\n".join(filter(None, (message.content, text))), extras=extras)

    return tuple(written(message) if message.extras.get("tool_calls") else message for message in messages)


def _merge_neighbours(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    merged: list[Message] = []
    for message in messages:
        last = merged[-1] if merged else None
        alike = last and (last.role, last.learned, last.extras) == (message.role, message.learned, {})
        if last and alike and not message.extras and message.role != "tool":
            merged[-1] = replace(last, content=f"{last.content}\n\n{message.content}")
        else:
            merged.append(message)
    return tuple(merged)


def _as_dict(message: Message) -> dict[str, Any]:
    return {"role": message.role, "content": message.content, **message.extras}


def _plain_renderer(tokenizer: PreTrainedTokenizerBase, style: Style, end: str) -> Render:
    return _chat_renderer(tokenizer, ChatTemplate(name="plain", text=style.chat_template(end)))


def _beginning(tokenizer: PreTrainedTokenizerBase, tokens: tuple[int, ...]) -> str | None:
    """The text that a server turns into these tokens in front of a text; None where there is none."""
    first = tokenizer.decode(list(tokens))
    alone = tokenizer("User", add_special_tokens=False)["input_ids"]
    # Some tokenizers write a space in front of a text, but not behind a special token.
    return next(
        (
            text
            for text in (first, f"{first} ")
            if tokenizer(f"{text}User", add_special_tokens=False)["input_ids"] == [*tokens, *alone]
        ),
        None,
    )


def _opening_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """What the tokenizer itself puts in front of a text: the beginning-of-text token, or nothing."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    starts = [start for start in range(len(whole)) if whole[start : start + len(bare)] == bare]
    return tuple(whole[: starts[0]]) if starts else ()


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:200].rstrip(".")
