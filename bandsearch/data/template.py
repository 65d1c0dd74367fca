"""Templates: how a conversation is written as text, by the model's own chat template or by a plain one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from bandsearch.data.messages import Message, with_arguments
from bandsearch.data.shapes import Example, Shape

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
    """`prefix` are the tokens put in front of everything; chat templates write theirs themselves. `render` writes
    examples after the `adaptations`, in this order."""

    description: str
    render: Render
    prefix: tuple[int, ...] = ()
    adaptations: tuple[Adaptation, ...] = ()


@dataclass(frozen=True)
class Style:
    """A plain template: what stands before a message of each role, and between two messages.

    `lead` stands between the opening of an answer and the answer, and is learned with it: tokenizers join a space to
    the word that follows.
    """

    opening: Mapping[str, str]
    between: str
    lead: str = ""


CHAT_TEMPLATE = "the model's chat template"
SYSTEM_FOLDED = "the system message is written with the first question: the chat template has no place for it"
NEIGHBOURS_MERGED = "neighbouring messages of one role are written as one: the chat template refuses them"
ARGUMENTS_WRITTEN = "the arguments of tool calls are given as JSON text: the chat template takes no objects"
_CALLING = Message(
    "assistant",
    "",
    {"tool_calls": [{"id": "a1b2c3d4e", "type": "function", "function": {"name": "f", "arguments": {}}}]},
)
_SENTINEL = "Be brief and kind."
_CONVERSATION = Style({"system": "System: ", "user": "User: ", "assistant": "Assistant:", "tool": "Tool: "}, "\n", " ")
_AS_IT_IS = Style({"user": "", "assistant": ""}, "")
# What stands for turns in templates of tokenizers that have no special tokens for them.
_TURNS = ("[INST]",)
_STYLES = {
    Shape.CHAT: _CONVERSATION,
    Shape.SHAREGPT: _CONVERSATION,
    # The form in which lm-eval asks GSM8K.
    Shape.QUESTION: Style({"user": "Question: ", "assistant": "Answer:"}, "\n", " "),
    Shape.ALPACA: Style({"system": "", "user": "### Instruction:\n", "assistant": "### Response:\n"}, "\n\n"),
}


def template_for(tokenizer: PreTrainedTokenizerBase, shape: Shape, examples: Sequence[Example]) -> Template:
    """The tokenizer's chat template, or a plain one where it has none. Plain text gets neither, nor do prompts with the
    model's own tokens for turns: a template would wrap them once more."""
    if shape is Shape.TEXT:
        return Template("none (plain text)", lambda example, count, opened: example.text, _opening_tokens(tokenizer))
    if _already_formatted(tokenizer, examples):
        described = "none (the prompts are written in the model's own turns already)"
        return Template(described, _plain_renderer(_AS_IT_IS, ""), _opening_tokens(tokenizer))
    if tokenizer.chat_template:
        return Template(CHAT_TEMPLATE, _chat_renderer(tokenizer), adaptations=_adaptations(tokenizer))
    style = _STYLES.get(shape) or _prompt_style(examples)
    return Template(_describe(style), _plain_renderer(style, tokenizer.eos_token or ""), _opening_tokens(tokenizer))


def _already_formatted(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> bool:
    """Whether more than half of the examples are a prompt with a special token inside and its completion."""
    named = {getattr(tokenizer, f"{name}_token", None) for name in ("bos", "eos", "pad", "unk")}
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    written = [turn for turn in _TURNS if turn in str(tokenizer.chat_template or turn)]
    turns = [token for token in (*special, *written) if token not in named]
    prompts = [example.messages[0].content for example in examples if len(example.messages) == 2]
    return 2 * sum(any(token in prompt for token in turns) for prompt in prompts) > len(examples)


def _chat_renderer(tokenizer: PreTrainedTokenizerBase) -> Render:
    def render(example: Example, count: int, opened: bool) -> str:
        messages = [_as_dict(message) for message in example.messages[:count]]
        try:
            text = tokenizer.apply_chat_template(
                messages, tools=list(example.tools) or None, add_generation_prompt=opened, tokenize=False
            )
        # Templates are programs: they raise on purpose (TemplateError) and by accident (the others).
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise TemplateRefusedError(f"the chat template refuses this conversation ({_sentence(error)})") from error
        return str(text)

    return render


def _adaptations(tokenizer: PreTrainedTokenizerBase) -> tuple[Adaptation, ...]:
    """What this chat template needs, found by trying it."""
    render = _chat_renderer(tokenizer)

    def written(*messages: Message) -> str:
        try:
            return render(Example("", messages), len(messages), False)
        except TemplateRefusedError:
            return ""

    user, answer = Message("user", "question"), Message("assistant", "answer")
    found = []
    # Some templates refuse a system message, others leave it out without a word.
    if _SENTINEL not in written(Message("system", _SENTINEL), user, answer):
        found.append(Adaptation(_fold_system, SYSTEM_FOLDED))
    if not written(user, _CALLING) and written(user, *_write_arguments((_CALLING,))):
        found.append(Adaptation(_write_arguments, ARGUMENTS_WRITTEN))
    if written(user, answer) and not written(user, user, answer):
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


def _plain_renderer(style: Style, end: str) -> Render:
    def render(example: Example, count: int, opened: bool) -> str:
        parts = []
        for message in example.messages[:count]:
            calls = message.extras.get("tool_calls")
            content = "\n".join(filter(None, (message.content, calls and json.dumps(calls, default=str))))
            lead, closing = (style.lead, end) if message.role == "assistant" else ("", "")
            parts.append(style.opening.get(message.role, "") + lead + content + closing)
        if opened:
            parts.append(style.opening["assistant"])
        return style.between.join(parts)

    return render


def _prompt_style(examples: Sequence[Example]) -> Style:
    """Prompts and completions are joined as they are where their author left a space or line break between them."""
    if any(len(example.messages) > 2 or example.messages[0].role != "user" for example in examples):
        return _CONVERSATION
    spaced = sum(
        example.messages[0].content[-1].isspace() or example.messages[1].content[0].isspace() for example in examples
    )
    return Style({"user": "", "assistant": ""}, "" if 2 * spaced >= len(examples) else "\n")


def _describe(style: Style) -> str:
    """In one line, with line breaks as \\n."""
    text = f"{style.opening['user']}{{prompt}}{style.between}{style.opening['assistant']}{style.lead}{{completion}}"
    return "plain, " + text.replace("\n", "\\n")


def _opening_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """What the tokenizer itself puts in front of a text: the beginning-of-text token, or nothing."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    starts = [start for start in range(len(whole)) if whole[start : start + len(bare)] == bare]
    return tuple(whole[: starts[0]]) if starts else ()


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:200].rstrip(".")
