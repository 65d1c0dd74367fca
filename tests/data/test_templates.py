"""A chat template that a person chooses is what trains; what trains can be handed to a server."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plain_examples import plain_values
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from bandsearch.data.chat_templates import load_template
from bandsearch.data.dataset import Dataset, prepare
from bandsearch.data.day import DAY, DAY_FIXED, on_the_day
from bandsearch.data.encoding import encode
from bandsearch.data.shapes import Example, Message, Shape
from bandsearch.data.template import Template, template_for
from bandsearch.values.errors import BandsearchError, DataError, UsageError
from bandsearch.values.spec import ChatTemplate, DataSpec

Load = Callable[[str], PreTrainedTokenizerBase]
Write = Callable[[Sequence[Any]], str]

relaxed = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
ROWS = [{"prompt": f"What is {i}?", "completion": f"It is {7 * i}."} for i in range(40)]
# Turns that no tokenizer of the tests has tokens for.
MARKED = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|done|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": "ß", "b": [1, None]}}}


def chosen(text: str) -> ChatTemplate:
    return ChatTemplate(name="mine.jinja", text=text)


def conversation(*turns: tuple[str, str]) -> Example:
    return Example("here", tuple(Message(*turn) for turn in turns))


def learned(tokenizer: PreTrainedTokenizerBase, template: Template, example: Example) -> str:
    (encoded,) = encode([example], template, tokenizer, 10_000).encoded[0]
    tokens = [token for token, on in zip(encoded.input_ids, encoded.supervised, strict=True) if on]
    return tokenizer.decode(tokens, clean_up_tokenization_spaces=False)


# What is said, and whether a tool is called beside it.
said = st.tuples(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), st.booleans())
conversations = st.builds(
    lambda system, pairs: (
        *((Message("system", system),) if system else ()),
        *(
            Message(role, content, {"tool_calls": [CALL]} if called and role == "assistant" else {})
            for pair in pairs
            for role, (content, called) in zip(("user", "assistant"), pair, strict=True)
        ),
    ),
    st.none() | st.text(max_size=8),
    st.lists(st.tuples(said, said), min_size=1, max_size=3),
)


def as_dicts(messages: Sequence[Message]) -> list[dict[str, Any]]:
    return [{"role": message.role, "content": message.content, **message.extras} for message in messages]


PLAIN = {
    Shape.CHAT: ({"system": "System: ", "user": "User: ", "assistant": "Assistant:"}, "\n", " "),
    Shape.QUESTION: ({"user": "Question: ", "assistant": "Answer:"}, "\n", " "),
    Shape.ALPACA: ({"user": "### Instruction:\n", "assistant": "### Response:\n"}, "\n\n", ""),
}


@relaxed
@given(messages=conversations)
@pytest.mark.parametrize("shape", PLAIN)
def test_a_plain_form_is_written_as_it_says(tokenizer_of: Load, shape: Shape, messages: tuple[Message, ...]) -> None:
    openings, between, lead = PLAIN[shape]
    template = template_for(tokenizer_of("gpt2"), shape, [])
    parts = []
    for message in messages:
        called = json.dumps(message.extras["tool_calls"]) if message.extras else ""
        content = "\n".join(part for part in (message.content, called) if part)
        if message.role == "assistant":
            # What a server has answered begins with the space already.
            content = (content if content.startswith(lead) else lead + content) + "</s>"
        parts.append(openings.get(message.role, "") + content)
    example = Example("here", messages)
    assert template.render(example, len(messages), False) == between.join(parts)
    assert template.render(example, len(messages) - 1, True) == between.join([*parts[:-1], openings["assistant"]])


@relaxed
@given(messages=conversations)
@pytest.mark.parametrize("shape", PLAIN)
def test_a_server_that_is_given_the_plain_form_asks_in_the_tokens_that_trained(
    tokenizer_of: Load, shape: Shape, messages: tuple[Message, ...]
) -> None:
    for tokenizer in (tokenizer_of("gpt2"), with_beginning(tokenizer_of("gpt2")), joins_a_space()):
        template = template_for(tokenizer, shape, [])
        for count, opened in ((len(messages), False), (len(messages) - 1, True)):
            text = template.render(Example("here", messages), count, opened)
            tokenizer.chat_template = template.jinja
            served = tokenizer.apply_chat_template(
                as_dicts(messages[:count]), add_generation_prompt=opened, tokenize=False
            )
            ids = tokenizer(served, add_special_tokens=False)["input_ids"]
            assert served.endswith(text)
            if text[:1].strip():
                assert ids == [*template.prefix, *tokenizer(text, add_special_tokens=False)["input_ids"]]
            tokenizer.chat_template = None


def with_beginning(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    tokenizer._tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def joins_a_space() -> PreTrainedTokenizerBase:
    """As Llama 2's: writes a space in front of a text, but not behind the token that begins it."""
    letters = [chr(code) for code in range(33, 127)]
    vocabulary = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", "▁", *letters, "▁User", "User"])}
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    assert tokenizer("a")["input_ids"] != tokenizer("<s>a", add_special_tokens=False)["input_ids"][1:]
    return with_beginning(tokenizer)


@relaxed
@given(messages=conversations)
def test_a_chosen_template_trains_as_if_the_model_brought_it(tokenizer_of: Load, messages: tuple[Message, ...]) -> None:
    given, own = tokenizer_of("gpt2"), tokenizer_of("gpt2")
    own.chat_template = text = str(tokenizer_of("llama").chat_template)
    template = template_for(given, Shape.CHAT, [], chosen(text))
    assert template.jinja == text
    example = Example("here", messages)
    ours, theirs = (
        encode([example], each, tokenizer, 10_000)
        for each, tokenizer in ((template, given), (template_for(own, Shape.CHAT, []), own))
    )
    values = [[plain_values(each) for (each,) in encoding.encoded] for encoding in (ours, theirs)]
    assert values[0] == values[1]
    assert replace(ours, encoded=()) == replace(theirs, encoded=())
    for count, opened in ((len(messages), False), (len(messages) - 1, True)):
        served = own.apply_chat_template(as_dicts(messages[:count]), add_generation_prompt=opened, tokenize=False)
        assert template.render(example, count, opened) == served


def test_chatml_is_known_by_name(tokenizer_of: Load) -> None:
    tokenizer = tokenizer_of("gpt2")
    template = template_for(tokenizer, Shape.CHAT, [], load_template("chatml"))
    example = conversation(
        ("system", "Be kind."), ("user", "Hi"), ("assistant", "Yes"), ("user", "And"), ("assistant", "No")
    )
    assert template.render(example, 4, True) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes<|im_end|>\n"
        "<|im_start|>user\nAnd<|im_end|>\n<|im_start|>assistant\n"
    )
    assert template.notes == ()
    assert learned(tokenizer, template, example) == "Yes<|im_end|>No<|im_end|></s>"


def test_turns_that_are_no_tokens_are_said_to_be_text_and_answers_end_with_the_end_of_text(
    plain: PreTrainedTokenizerBase,
) -> None:
    template = template_for(plain, Shape.CHAT, [], chosen(MARKED))
    assert template.notes == (
        "Not in the tokenizer, so ordinary text to the model: <|assistant|>, <|done|>, <|system|>, <|user|>, "
        "and answers end with </s>.",
    )
    once = conversation(("user", "Hi"), ("assistant", "Yes"))
    twice = conversation(("user", "Hi"), ("assistant", "Yes"), ("user", "And"), ("assistant", "No"))
    assert learned(plain, template, once) == "Yes</s>"
    assert learned(plain, template, twice) == "YesNo</s>"
    encoding = encode([twice], template, plain, 10_000)
    assert encoding.stops == {plain.eos_token_id}
    (encoded,) = encoding.encoded[0]
    asked = "<|user|>\nHi<|done|>\n<|assistant|>\nYes<|done|>\n<|user|>\nAnd<|done|>\n<|assistant|>\n"
    assert plain.decode(encoded.prompt_ids) == asked


def test_a_template_without_the_beginning_of_text_is_noticed(plain: PreTrainedTokenizerBase) -> None:
    tokenizer = with_beginning(plain)
    (note,) = template_for(tokenizer, Shape.CHAT, [], load_template("chatml")).notes
    assert note == "The chat template writes no <s> in front, as the tokenizer does; nor will a server."
    assert template_for(tokenizer, Shape.CHAT, [], chosen("{{ bos_token }}" + load_template("chatml").text)).notes == ()


def prepared(path: str, tokenizer: PreTrainedTokenizerBase, template: ChatTemplate | None) -> Dataset:
    return prepare(DataSpec(name=path, template=template), tokenizer, 0)


def test_another_template_is_another_data_set(jsonl: Write, plain: PreTrainedTokenizerBase) -> None:
    path = jsonl(ROWS)
    without, marked, other = (
        prepared(path, plain, template) for template in (None, chosen(MARKED), load_template("chatml"))
    )
    assert len({without.fingerprint, marked.fingerprint, other.fingerprint}) == 3
    renamed = ChatTemplate(name="elsewhere.jinja", text=MARKED)
    assert prepared(path, plain, renamed).fingerprint == marked.fingerprint
    assert "Template: the chat template mine.jinja." in marked.notes
    assert marked.chat_template == MARKED
    assert marked.stop_ids == (plain.eos_token_id,)
    assert without.template == "plain, {prompt}\\n{completion}"
    assert without.chat_template


def test_what_is_no_conversation_is_not_written_by_a_template(jsonl: Write, plain: PreTrainedTokenizerBase) -> None:
    for rows in (
        [{"text": f"Plain text {i}."} for i in range(20)],
        [{"prompt": f"<|user|>\n{i}<|done|>\n<|assistant|>\n", "completion": f"{i}."} for i in range(20)],
    ):
        dataset = prepared(jsonl(rows), plain, chosen(MARKED))
        assert dataset.template.startswith("none")
        assert dataset.chat_template == ""
        assert "mine.jinja is not used." in dataset.notes


def test_a_model_with_its_own_template_needs_none_beside_its_adapter(
    jsonl: Write, chat: PreTrainedTokenizerBase
) -> None:
    assert prepared(jsonl(ROWS), chat, None).chat_template == ""
    assert prepared(jsonl(ROWS), chat, chosen(MARKED)).chat_template == MARKED


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("{% for m in messages %}", UsageError, ["mine.jinja does not parse", "line 1", "another --template"]),
        ("{{ messages | shout }}", UsageError, ["mine.jinja does not parse", "shout"]),
        ("{{ raise_exception('Only on Sundays') }}", DataError, ["Only on Sundays", "--template than mine.jinja"]),
        ("{{ 1 / 0 }}", DataError, ["division by zero", "--template than mine.jinja"]),
        ("Once upon a time", DataError, ["leaves an answer out", "--template than mine.jinja"]),
    ],
)
def test_a_template_of_no_use_is_refused_by_name(
    jsonl: Write, plain: PreTrainedTokenizerBase, text: str, error: type[BandsearchError], words: list[str]
) -> None:
    with pytest.raises(error) as refused:
        prepared(jsonl(ROWS), plain, chosen(text))
    for word in words:
        assert word in str(refused.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["no chat template", "chatml"]),
        (b" \n", ["is empty"]),
        (b"\xff\xfe", ["not UTF-8"]),
        (b'{"chat_template": "{% for m in messages %}{{ m }}{% endfor %}"}', ["is JSON", ".jinja file"]),
    ],
)
def test_a_file_that_is_no_template_is_refused(tmp_path: Path, content: bytes | None, words: list[str]) -> None:
    path = tmp_path / "mine.jinja"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError) as refused:
        load_template(str(path))
    for word in (str(path), *words):
        assert word in str(refused.value)


def test_a_file_is_read_as_it_stands(tmp_path: Path) -> None:
    (tmp_path / "mine.jinja").write_text(MARKED, encoding="utf-8")
    assert load_template(str(tmp_path / "mine.jinja")) == chosen(MARKED)


def dated(form: str) -> str:
    """As Llama 3.2's and SmolLM3's."""
    return (
        "\n{% if strftime_now is defined %}{% set date = strftime_now("
        + repr(form)
        + ") %}{% endif %}\n{{ date }}"
        + MARKED
    )


@relaxed
@given(
    form=st.lists(st.sampled_from([*(f"%{letter}" for letter in "aAbBdHjmMSyY"), "%-d", " ", "-", "of"])).map("".join)
)
def test_the_date_that_a_template_writes_does_not_change_from_day_to_day(tokenizer_of: Load, form: str) -> None:
    tokenizer = tokenizer_of("gpt2")
    messages = (Message("user", "Hi"), Message("assistant", "Yes"))
    given_one = template_for(tokenizer, Shape.CHAT, [], chosen(dated(form)))
    text = given_one.render(Example("here", messages), 2, False)
    assert text == f"\n{DAY.strftime(form)}<|user|>\nHi<|done|>\n<|assistant|>\nYes<|done|>\n"
    tokenizer.chat_template = dated(form)
    own = template_for(tokenizer, Shape.CHAT, [])
    assert own.render(Example("here", messages), 2, False) == text
    assert DAY_FIXED in own.notes
    assert DAY_FIXED in given_one.notes


@pytest.mark.parametrize(
    "beginning", ["  {% if true %}", "  {# A note. #}\n{% if true %}", "\n{%- if true %}", "{% if true %}"]
)
def test_a_template_begins_as_it_does_by_itself(tokenizer_of: Load, beginning: str) -> None:
    """Blanks in front of a block are not written where a line begins with them."""
    tokenizer = tokenizer_of("gpt2")
    conversation = [{"role": "user", "content": "Hi"}]
    dated = beginning + "{{ strftime_now('%Y') }}{% endif %}{{ messages[0].content }}"
    by_itself = tokenizer.apply_chat_template(conversation, chat_template=dated, tokenize=False)
    fixed = tokenizer.apply_chat_template(conversation, chat_template=on_the_day(dated), tokenize=False)
    assert fixed == by_itself.replace(f"{datetime.now():%Y}", "2024")


def test_where_a_template_writes_a_date_this_is_said(jsonl: Write, chat: PreTrainedTokenizerBase) -> None:
    assert DAY_FIXED not in prepared(jsonl(ROWS), chat, None).notes
    chat.chat_template = "{{ strftime_now('%d %b %Y') }}" + str(chat.chat_template)
    dataset = prepared(jsonl(ROWS), chat, None)
    assert DAY_FIXED in dataset.notes
    assert chat.decode(dataset.train[0].input_ids).startswith("26 Jul 2024")
