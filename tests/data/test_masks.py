"""What is learned is the answer and its end, token by token, whatever the tokenizer and its template do."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plain_examples import plain_values
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase

from bandsearch.data.encoding import OPENED_OTHERWISE, THOUGHT_LOST, Encoding, encode
from bandsearch.data.examples import Encoded
from bandsearch.data.shapes import Example, Message, Shape
from bandsearch.data.template import ARGUMENTS_WRITTEN, CALLS_AS_TEXT, NEIGHBOURS_MERGED, SYSTEM_FOLDED, template_for

Load = Callable[[str], PreTrainedTokenizerBase]

relaxed = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def text(**options: int) -> st.SearchStrategy[str]:
    """Any text with something to see in it. Composed, because some tokenizers compose it; no special tokens."""
    composed = st.text(**options).map(lambda raw: unicodedata.normalize("NFC", raw))
    return composed.filter(lambda made: made.strip() and "<" not in made)


def asked(prompt: str, completion: str) -> Example:
    return Example("here", (Message("user", prompt), Message("assistant", completion)))


def conversation(*contents: str) -> Example:
    roles = ("user", "assistant")
    return Example("here", tuple(Message(roles[i % 2], content) for i, content in enumerate(contents)))


def encoding(
    examples: list[Example], tokenizer: PreTrainedTokenizerBase, shape: Shape = Shape.PROMPT, max_length: int = 10_000
) -> Encoding:
    return encode(examples, template_for(tokenizer, shape, examples), tokenizer, max_length)


def encoded(example: Example, tokenizer: PreTrainedTokenizerBase, shape: Shape = Shape.PROMPT) -> Encoded:
    result = encoding([example], tokenizer, shape)
    assert result.problems == ()
    (example,) = result.encoded[0]
    return example


def learned(example: Encoded, tokenizer: PreTrainedTokenizerBase) -> str:
    tokens = [token for token, on in zip(example.input_ids, example.supervised, strict=True) if on]
    return tokenizer.decode(tokens, clean_up_tokenization_spaces=False)


def reference(prompt: str, completion: str, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[bool]]:
    """Tokens and mask of one question and answer, by the shortest way there is."""
    end = [tokenizer.eos_token_id]
    if tokenizer.chat_template:
        user, assistant = ({"role": role, "content": x} for role, x in (("user", prompt), ("assistant", completion)))
        before = tokenizer.apply_chat_template([user], add_generation_prompt=True, return_dict=False)
        whole = tokenizer.apply_chat_template([user, assistant], return_dict=False)
        whole = whole[: len(whole) - whole[::-1].index(tokenizer.convert_tokens_to_ids("<|im_end|>"))] + end
    else:
        spaced = prompt[-1].isspace() or completion[0].isspace()
        before = tokenizer(prompt if spaced else prompt + "\n", add_special_tokens=False)["input_ids"]
        joined = prompt + completion if spaced else f"{prompt}\n{completion}"
        whole = tokenizer(joined, add_special_tokens=False)["input_ids"] + end
    shared = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(before, whole, strict=False))))
    return whole, [False] * shared + [True] * (len(whole) - shared)


@relaxed
@given(prompt=text(max_size=30), completion=text(max_size=30))
def test_answers_of_every_family(family: str, tokenizer_of: Load, prompt: str, completion: str) -> None:
    tokenizer = tokenizer_of(family)
    example = encoded(asked(prompt, completion), tokenizer)
    whole, mask = reference(prompt, completion, tokenizer)
    assert list(example.input_ids) == whole
    assert list(example.supervised) == [False, *mask[1:]]
    assert example.answer == completion
    assert example.prompt_length == mask.index(True)


@relaxed
@given(prompt=text(max_size=30), completion=text(max_size=30))
@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "gemma2"])
def test_what_is_learned_reads_as_the_answer(name: str, tokenizer_of: Load, prompt: str, completion: str) -> None:
    tokenizer = tokenizer_of(name)
    example = encoded(asked(prompt, completion), tokenizer)
    end = "<|im_end|></s>" if tokenizer.chat_template else "</s>"
    read = learned(example, tokenizer)
    # A token may reach over the border: then the answer begins with the end of the prompt.
    assert read.endswith(completion.lstrip() + end) or completion[0].isspace()
    assert len(read) <= len(completion + end) + 8
    if completion[0].isalnum():
        assert read == completion + end


@relaxed
@given(contents=st.lists(text(max_size=12), min_size=2, max_size=8).filter(lambda items: len(items) % 2 == 0))
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_every_answer_of_a_conversation(name: str, tokenizer_of: Load, contents: list[str]) -> None:
    contents = [f"a{content}" for content in contents]
    tokenizer = tokenizer_of(name)
    example = encoded(conversation(*contents), tokenizer, Shape.CHAT)
    lead, turn, end = ("", "<|im_end|>", "</s>") if tokenizer.chat_template else (" ", "</s>", "")
    assert learned(example, tokenizer) == "".join(lead + answer + turn for answer in contents[1::2]) + end
    assert example.answer == contents[-1]
    tail = tokenizer.decode(example.input_ids[len(example.prompt_ids) :], clean_up_tokenization_spaces=False)
    assert tail == lead + contents[-1] + turn + end


@relaxed
@given(content=text(max_size=40))
def test_of_plain_text_everything_but_the_first_token(family: str, tokenizer_of: Load, content: str) -> None:
    tokenizer = tokenizer_of(family)
    example = encoded(Example("here", text=content), tokenizer, Shape.TEXT)
    assert example.supervised.tolist() == [False, *[True] * (len(example.input_ids) - 1)]
    assert tokenizer.decode(example.input_ids, clean_up_tokenization_spaces=False) == content + "</s>"


def with_bos(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    tokenizer._tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    assert tokenizer("a")["input_ids"][0] == 1
    return tokenizer


def test_the_beginning_of_text_stands_once(tokenizer_of: Load) -> None:
    plain, chat = with_bos(tokenizer_of("gpt2")), with_bos(tokenizer_of("llama"))
    for tokenizer, example, shape in (
        (plain, asked("Hi", "Yes"), Shape.PROMPT),
        (plain, Example("here", text="Yes"), Shape.TEXT),
        (plain, Example("here", text="<s>Yes"), Shape.TEXT),
        (chat, Example("here", text="Yes"), Shape.TEXT),
    ):
        ids = encoded(example, tokenizer, shape).input_ids.tolist()
        assert ids[0] == 1
        assert ids.count(1) == 1
    assert learned(encoded(asked("Hi", "Yes"), plain), plain) == "Yes</s>"
    assert learned(encoded(Example("here", text="Yes"), plain, Shape.TEXT), plain) == "Yes</s>"
    # Serving adds nothing to what a chat template writes, so neither does training.
    assert encoded(asked("Hi", "Yes"), chat).input_ids.tolist().count(1) == 0
    chat.chat_template = "{{ bos_token }}" + chat.chat_template
    assert encoded(asked("Hi", "Yes"), chat).input_ids.tolist().count(1) == 1


TURN = "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
LOOP = "{% for m in messages %}"
OPEN = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def test_a_template_that_ends_with_the_end_of_text(tokenizer_of: Load) -> None:
    tokenizer = tokenizer_of("llama")
    for template in (
        LOOP + TURN + "{% endfor %}{% if not add_generation_prompt %}{{ eos_token }}{% endif %}" + OPEN,
        LOOP + TURN + "{% endfor %}{% if not add_generation_prompt %}{{ eos_token + '\n' }}{% endif %}" + OPEN,
    ):
        tokenizer.chat_template = template
        assert learned(encoded(asked("Hi", "Yes"), tokenizer), tokenizer) == "Yes<|im_end|>\n</s>"
        both = encoded(conversation("Hi", "Yes", "And", "No"), tokenizer, Shape.CHAT)
        assert learned(both, tokenizer) == "Yes<|im_end|>No<|im_end|>\n</s>"


def test_a_template_that_marks_no_end_of_turn(tokenizer_of: Load) -> None:
    tokenizer = tokenizer_of("llama")
    tokenizer.chat_template = (
        LOOP
        + "{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    assert learned(encoded(asked("Hi", "Yes"), tokenizer), tokenizer) == " Yes\n</s>"


def test_a_template_that_opens_answers_with_a_thought(tokenizer_of: Load) -> None:
    """As DeepSeek-R1's: the opening asks for a thought, the written conversation holds none."""
    tokenizer = tokenizer_of("llama")
    tokenizer.chat_template = LOOP + TURN + "{% endfor %}" + OPEN.replace("assistant\n", "assistant\n<t>\n")
    result = encoding([asked("Hi", "Yes"), conversation("Hi", "Yes", "And", "No")], tokenizer)
    (example,) = result.encoded[0]
    assert learned(example, tokenizer) == "Yes<|im_end|></s>"
    assert tokenizer.decode(example.prompt_ids).endswith("<|im_start|>assistant\n")
    assert result.adapted == {OPENED_OTHERWISE.format("'<t>\\n'"): 2}
    # Where the answer is written with what the opening begins, there is nothing to say.
    tokenizer.chat_template = thoughtful(tokenizer).chat_template.replace(OPEN, OPEN.replace("nt\n", "nt\n<t>"))
    assert encoding([asked("Hi", "Yes"), conversation("Hi", "Yes", "And", "No")], tokenizer).adapted == {}


def thoughtful(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """With a template as Qwen3's: only the last answer is written with its (empty) thought."""
    thought = "{% if loop.last and m['role'] == 'assistant' %}" + TURN.replace("'\n' + m", "'\n<t>empty</t>' + m")
    tokenizer.chat_template = LOOP + thought + "{% else %}" + TURN + "{% endif %}{% endfor %}" + OPEN
    return tokenizer


def test_a_template_that_rewrites_earlier_answers_teaches_each_as_the_last(tokenizer_of: Load) -> None:
    tokenizer = thoughtful(tokenizer_of("llama"))
    context = (Message("user", "Hi"), Message("assistant", "Yes", learned=False))
    examples = [
        conversation("Hi", "Yes", "And", "No"),
        conversation("Hi", "Yes"),
        Example("here", (*context, Message("user", "And"), Message("assistant", "No"))),
    ]
    result = encoding(examples, tokenizer, Shape.CHAT)
    assert (result.copied, result.copies) == (1, 2)
    assert result.problems == ()
    assert [[learned(each, tokenizer) for each in parts] for parts in result.encoded] == [
        ["<t>empty</t>Yes<|im_end|></s>", "<t>empty</t>No<|im_end|></s>"],
        ["<t>empty</t>Yes<|im_end|></s>"],
        ["<t>empty</t>No<|im_end|></s>"],
    ]


@relaxed
@given(
    contents=st.lists(text(max_size=12), min_size=4, max_size=10).filter(lambda items: len(items) % 2 == 0),
    length=st.integers(8, 200),
)
def test_each_copy_is_what_a_server_asks_at_its_turn(tokenizer_of: Load, contents: list[str], length: int) -> None:
    tokenizer = thoughtful(tokenizer_of("llama"))
    example = conversation(*(f"a{content}" for content in contents))
    result = encoding([example], tokenizer, Shape.CHAT, length)
    alone = [conversation(*(m.content for m in example.messages[: index + 1])) for index in example.answers]
    alone = [replace(each, messages=(*as_context(each.messages[:-1]), each.messages[-1])) for each in alone]
    expected = [encoding([each], tokenizer, Shape.CHAT, length) for each in alone]
    kept = [part for each in expected for part in each.encoded[0]]
    assert list(map(plain_values, result.encoded[0])) == list(map(plain_values, kept))
    assert result.copies == len(kept)
    assert result.truncated == (len(kept) > 0 and any(each.truncated or each.dropped_lengths for each in expected))
    assert len(result.dropped_lengths) == (not kept)
    for part, each in zip(result.encoded[0], alone, strict=False):
        said = [{"role": message.role, "content": message.content} for message in each.messages[:-1]]
        served = tokenizer.apply_chat_template(said, add_generation_prompt=True, return_dict=False)
        assert part.prompt_ids.tolist() == served[:length]
        assert part.answer == each.messages[-1].content


def as_context(messages: Sequence[Message]) -> tuple[Message, ...]:
    return tuple(replace(message, learned=False) for message in messages)


CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}


def calling(call: dict[str, Any]) -> Example:
    return Example("here", (Message("user", "Add"), Message("assistant", "", {"tool_calls": [call]})))


def with_calls(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    call = "{% for c in m['tool_calls'] or [] %}<call>{{ c['function'] | tojson }}</call>{% endfor %}"
    tokenizer.chat_template = (
        LOOP + TURN.replace("<|im_end|>", "' }}" + call + "{{ '<|im_end|>") + "{% endfor %}" + OPEN
    )
    return tokenizer


def test_an_answer_that_only_calls_a_tool_is_the_call(tokenizer_of: Load) -> None:
    example = encoded(calling(CALL), with_calls(tokenizer_of("llama")), Shape.CHAT)
    assert example.answer == '<call>{"name": "add", "arguments": {"a": 1}}</call>'


def test_a_template_that_takes_arguments_as_text_gets_them_as_text(tokenizer_of: Load) -> None:
    tokenizer = with_calls(tokenizer_of("llama"))
    tokenizer.chat_template = str(tokenizer.chat_template).replace(
        "c['function'] | tojson", "c['function']['name'] + ' ' + c['function']['arguments']"
    )
    result = encoding([calling(CALL)], tokenizer, Shape.CHAT)
    assert result.adapted == {ARGUMENTS_WRITTEN: 1}
    assert [each.answer for each in result.encoded[0]] == ['<call>add {"a": 1}</call>']


def test_a_template_that_knows_no_calls_gets_them_as_text(tokenizer_of: Load) -> None:
    tokenizer = tokenizer_of("llama")
    tokenizer.chat_template = LOOP + TURN + "{% endfor %}" + OPEN
    messages = (Message("user", "Add"), Message("assistant", "So:", {"tool_calls": [CALL, CALL]}))
    result = encoding([calling(CALL), Example("here", messages), asked("Hi", "Yes")], tokenizer, Shape.CHAT)
    assert result.adapted == {CALLS_AS_TEXT: 2}
    function = '{"name": "add", "arguments": {"a": 1}}'
    answers = [each.answer for parts in result.encoded for each in parts]
    assert answers == [function, f"So:\n[{function}, {function}]", "Yes"]
    # Where calls are only written beside the tools that are offered, they are.
    tokenizer = with_calls(tokenizer)
    tokenizer.chat_template = str(tokenizer.chat_template).replace("or []", "or [] if tools")
    example = replace(calling(CALL), tools=({"type": "function", "function": {"name": "add"}},))
    assert encoded(example, tokenizer, Shape.CHAT).answer == f"<call>{function}</call>"


def test_the_plain_template_writes_what_is_said_beside_a_call(tokenizer_of: Load) -> None:
    tokenizer = tokenizer_of("gpt2")
    messages = (Message("user", "Add"), Message("assistant", "So:", {"tool_calls": [CALL]}))
    text = learned(encoded(Example("here", messages), tokenizer, Shape.CHAT), tokenizer)
    assert text.startswith(' So:\n[{"type": "function", "function": {"name": "add"')


def test_an_answer_whose_end_was_rewritten_is_not_learned_in_part(tokenizer_of: Load) -> None:
    tokenizer = tokenizer_of("llama")
    note = "{{ '<|im_start|>assistant\n' + m['content'] + ' (nobody has asked for anything else)<|im_end|>\n' }}"
    noted = "{% if loop.last and m['role'] == 'assistant' %}" + note
    tokenizer.chat_template = LOOP + noted + "{% else %}" + TURN + "{% endif %}{% endfor %}" + OPEN
    (parts,) = encoding([conversation("Hi", "Yes", "And", "No")], tokenizer, Shape.CHAT).encoded
    assert [learned(each, tokenizer) for each in parts] == [
        f"{answer} (nobody has asked for anything else)<|im_end|></s>" for answer in ("Yes", "No")
    ]


def test_a_template_that_rewrites_the_question_is_refused(tokenizer_of: Load) -> None:
    tokenizer = tokenizer_of("llama")
    tokenizer.chat_template = "{{ messages | length }}" + LOOP + TURN + "{% endfor %}" + OPEN
    result = encoding([asked("Hi", "Yes")], tokenizer)
    assert result.encoded == ((),)
    assert [str(problem) for problem in result.problems] == [
        "here: the chat template writes the question differently once it is answered, so no mask can be found"
    ]


def test_a_template_without_system_gets_it_with_the_first_question(tokenizer_of: Load) -> None:
    tokenizer = tokenizer_of("llama")
    guard = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    tokenizer.chat_template = guard + LOOP + TURN + "{% endfor %}" + OPEN
    messages = (Message("system", "Be kind."), Message("user", "Hi"), Message("assistant", "Yes"))
    example = encoded(Example("here", messages), tokenizer, Shape.CHAT)
    assert tokenizer.decode(example.input_ids).startswith("<|im_start|>user\nBe kind.\n\nHi<|im_end|>")
    assert learned(example, tokenizer) == "Yes<|im_end|></s>"


def test_a_template_that_leaves_the_system_out_gets_it_with_the_first_question(tokenizer_of: Load) -> None:
    tokenizer = tokenizer_of("llama")
    tokenizer.chat_template = LOOP + "{% if m['role'] != 'system' %}" + TURN + "{% endif %}{% endfor %}" + OPEN
    messages = (Message("system", "Be kind."), Message("user", "Hi"), Message("assistant", "Yes"))
    result = encoding([Example("here", messages), asked("Hi", "Yes")], tokenizer, Shape.CHAT)
    (example,) = result.encoded[0]
    assert tokenizer.decode(example.input_ids).startswith("<|im_start|>user\nBe kind.\n\nHi<|im_end|>")
    assert learned(example, tokenizer) == "Yes<|im_end|></s>"
    assert result.adapted == {SYSTEM_FOLDED: 1}


ALTERNATE = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}{% endfor %}"
)


def test_neighbours_of_one_role_are_one_where_a_template_refuses_them(tokenizer_of: Load) -> None:
    tokenizer = tokenizer_of("llama")
    turns = (
        ("user", "Hi"),
        ("user", "there"),
        ("assistant", "Yes"),
        ("assistant", "and"),
        ("user", "a"),
        ("assistant", "b"),
    )
    example = Example("here", tuple(Message(*turn) for turn in turns))
    # A template that takes them gets them as they are.
    assert learned(encoded(example, tokenizer, Shape.CHAT), tokenizer) == "Yes<|im_end|>and<|im_end|>b<|im_end|></s>"
    tokenizer.chat_template = ALTERNATE + LOOP + TURN + "{% endfor %}" + OPEN
    result = encoding([example, conversation("Hi", "Yes")], tokenizer, Shape.CHAT)
    assert result.adapted == {NEIGHBOURS_MERGED: 1}
    (merged,) = result.encoded[0]
    assert tokenizer.decode(merged.input_ids).startswith("<|im_start|>user\nHi\n\nthere<|im_end|>")
    assert learned(merged, tokenizer) == "Yes\n\nand<|im_end|>b<|im_end|></s>"


def test_an_answer_that_a_template_leaves_out_is_a_problem(tokenizer_of: Load) -> None:
    tokenizer = tokenizer_of("llama")
    tokenizer.chat_template = LOOP + TURN.replace("m['content']", "m['content'][:9]") + "{% endfor %}" + OPEN
    result = encoding([asked("Hi", "Yes, of course"), asked("Hi", " Yes\n")], tokenizer)
    assert [problem.message for problem in result.problems] == ["the template leaves an answer out"]
    assert result.encoded[1]


def test_a_thought_that_a_template_leaves_out_is_counted(tokenizer_of: Load) -> None:
    tokenizer = tokenizer_of("llama")
    within = asked("Hi", "<think>\nLong ago\n</think>\n\nYes")
    apart = Example("here", (Message("user", "Hi"), Message("assistant", "Yes", {"reasoning_content": "Long ago"})))
    assert encoding([within, asked("Hi", "Yes")], tokenizer).adapted == {}
    assert encoding([within, apart], tokenizer).adapted == {THOUGHT_LOST: 1}
    last = "{{ '<|im_start|>' + m['role'] + '\n' + m['content'].split('</think>')[-1] + '<|im_end|>\n' }}"
    tokenizer.chat_template = LOOP + last + "{% endfor %}" + OPEN
    earlier = conversation("Hi", "<think>Long ago</think>Yes", "And", "No")
    result = encoding([within, apart, asked("Hi", "Yes"), earlier], tokenizer)
    assert result.adapted == {THOUGHT_LOST: 3}
    assert all(result.encoded)


def test_what_a_template_refuses_is_passed_on(tokenizer_of: Load) -> None:
    tokenizer = tokenizer_of("llama")
    guard = "{% if messages | length > 2 %}{{ raise_exception('Roles must alternate') }}{% endif %}"
    tokenizer.chat_template = guard + LOOP + TURN + "{% endfor %}" + OPEN
    result = encoding([asked("Hi", "Yes"), conversation("a", "b", "c", "d")], tokenizer, Shape.CHAT)
    assert result.encoded[0]
    assert not result.encoded[1]
    assert [problem.message for problem in result.problems] == [
        "the chat template refuses this conversation (Roles must alternate)"
    ]


def test_long_examples_keep_the_start_of_the_answer(tokenizer_of: Load) -> None:
    tokenizer = tokenizer_of("gpt2")
    fits = encoded(asked("Hi", "Yes yes yes yes"), tokenizer)
    before = len(fits.prompt_ids)
    for length in range(1, len(fits.input_ids) + 2):
        result = encoding([asked("Hi", "Yes yes yes yes")], tokenizer, max_length=length)
        if length <= before:
            assert result.encoded == ((),)
            assert result.dropped_lengths == (len(fits.input_ids),)
            continue
        (example,) = result.encoded[0]
        assert example.input_ids.tolist() == fits.input_ids[:length].tolist()
        assert example.supervised.tolist() == fits.supervised[:length].tolist()
        assert result.truncated == (length < len(fits.input_ids))
        assert example.prompt_length == fits.prompt_length


def test_of_a_long_conversation_the_last_answer_within_reach_is_asked_for(tokenizer_of: Load) -> None:
    tokenizer = tokenizer_of("gpt2")
    whole = encoded(conversation("Hi", "Yes", "And", "No"), tokenizer, Shape.CHAT)
    result = encoding([conversation("Hi", "Yes", "And", "No")], tokenizer, Shape.CHAT, len(whole.prompt_ids))
    (cut,) = result.encoded[0]
    assert whole.answer == "No"
    assert cut.answer == "Yes"
    assert len(cut.prompt_ids) < len(whole.prompt_ids)


def test_many_examples_are_encoded_as_each_alone(tokenizer_of: Load) -> None:
    tokenizer = tokenizer_of("llama")
    examples = [asked(f"What is {i}?", f"It is {i * 7}.") for i in range(5000)]
    together = [example for (example,) in encoding(examples, tokenizer).encoded]
    assert len(together) == 5000
    for index in (0, 1, 4095, 4096, 4999):
        assert plain_values(together[index]) == plain_values(encoded(examples[index], tokenizer))
