"""Every accepted shape is recognised, named and masked; what is not usable is named with its line."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from bandsearch.data.dataset import Dataset, Encoded, prepare
from bandsearch.values.errors import DataError
from bandsearch.values.spec import DataSpec

Write = Callable[[Sequence[Any]], str]


def said(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def prepared(path: str, tokenizer: PreTrainedTokenizerBase, **options: Any) -> Dataset:
    return prepare(DataSpec(name=path, **options), tokenizer, 0)


def learned(example: Encoded, tokenizer: PreTrainedTokenizerBase) -> str:
    return tokenizer.decode([t for t, s in zip(example.input_ids, example.supervised, strict=True) if s])


def whole(example: Encoded, tokenizer: PreTrainedTokenizerBase) -> str:
    return tokenizer.decode(example.input_ids)


def row_at(dataset: Dataset, line: int) -> Encoded:
    everything = [*dataset.train, *dataset.validation, *dataset.test]
    return next(example for example in everything if example.place.endswith(f":{line}"))


# Shape, a row, what the plain template makes of it, what is learned of that.
SHAPES: list[tuple[str, Callable[[int], dict[str, Any]], str, str]] = [
    (
        "chat messages",
        lambda i: {"messages": [said("system", "Be kind."), said("user", f"Hi {i}"), said("assistant", f"Yes {i}")]},
        "System: Be kind.\nUser: Hi 1\nAssistant: Yes 1</s>",
        " Yes 1</s>",
    ),
    (
        "sharegpt",
        lambda i: {"conversations": [{"from": "human", "value": f"Hi {i}"}, {"from": "gpt", "value": f"Yes {i}"}]},
        "User: Hi 1\nAssistant: Yes 1</s>",
        " Yes 1</s>",
    ),
    ("prompt/completion", lambda i: {"prompt": f"Hi {i}", "completion": f"Yes {i}"}, "Hi 1\nYes 1</s>", "Yes 1</s>"),
    ("prompt/completion", lambda i: {"prompt": f"Hi {i}:", "completion": f" Yes {i}"}, "Hi 1: Yes 1</s>", " Yes 1</s>"),
    ("prompt/completion", lambda i: {"Prompt": f"Hi {i}\n", "Response": f"Yes {i}"}, "Hi 1\nYes 1</s>", "Yes 1</s>"),
    (
        "prompt/completion",
        lambda i: {"prompt": [said("user", f"Hi {i}")], "completion": [said("assistant", f"Yes {i}")]},
        "Hi 1\nYes 1</s>",
        "Yes 1</s>",
    ),
    (
        "alpaca",
        lambda i: {"instruction": f"Say {i}", "input": "politely" if i == 1 else "", "output": f"Yes {i}", "text": "x"},
        "### Instruction:\nSay 1\n\npolitely\n\n### Response:\nYes 1</s>",
        "Yes 1</s>",
    ),
    (
        "question/answer",
        lambda i: {"question": f"Is it {i}?", "answer": f"Yes {i} #### {i}"},
        "Question: Is it 1?\nAnswer: Yes 1 #### 1</s>",
        " Yes 1 #### 1</s>",
    ),
    ("plain text", lambda i: {"text": f"Yes {i}", "source": i}, "Yes 1</s>", "es 1</s>"),
]


@pytest.mark.parametrize(("shape", "row", "text", "answer"), SHAPES)
def test_shapes_with_the_plain_template(
    shape: str, row: Callable[[int], Any], text: str, answer: str, jsonl: Write, plain: PreTrainedTokenizerBase
) -> None:
    dataset = prepared(jsonl([row(i) for i in range(20)]), plain)
    assert dataset.shape == shape
    assert dataset.notes[0].startswith(f"20 rows of {shape} (")
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (16, 2, 2)
    example = row_at(dataset, 2)
    assert whole(example, plain) == text
    assert learned(example, plain) == answer
    assert dataset.stop_ids == (plain.eos_token_id,)


@pytest.mark.parametrize(("shape", "row"), [(shape, row) for shape, row, *_ in SHAPES if shape != "plain text"])
def test_shapes_with_the_models_chat_template(
    shape: str, row: Callable[[int], Any], jsonl: Write, chat: PreTrainedTokenizerBase
) -> None:
    dataset = prepared(jsonl([row(i) for i in range(20)]), chat)
    example = row_at(dataset, 2)
    assert dataset.shape == shape
    assert learned(example, chat) == f"{example.answer}<|im_end|></s>"
    assert whole(example, chat).endswith(f"<|im_start|>assistant\n{example.answer}<|im_end|></s>")
    assert chat.decode(example.prompt_ids).endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert set(dataset.stop_ids) == set(chat.convert_tokens_to_ids(["<|im_end|>", "</s>"]))
    assert dataset.template == "the model's chat template"


def test_plain_text_asks_nothing(jsonl: Write, chat: PreTrainedTokenizerBase) -> None:
    example = prepared(jsonl([{"text": f"Yes {i}"} for i in range(20)]), chat).train[0]
    assert example.prompt_length == 0
    assert example.answer == ""


def test_every_answer_of_a_conversation_is_learned(jsonl: Write, chat: PreTrainedTokenizerBase) -> None:
    rows = [
        {"messages": [said("user", f"Hi {i}"), said("assistant", "A"), said("user", "And?"), said("assistant", "B")]}
        for i in range(10)
    ]
    example = prepared(jsonl(rows), chat).train[0]
    assert learned(example, chat) == "A<|im_end|>B<|im_end|></s>"
    assert example.answer == "B"
    assert chat.decode(example.prompt_ids).endswith("And?<|im_end|>\n<|im_start|>assistant\n")


def test_answers_within_a_prompt_are_context(jsonl: Write, chat: PreTrainedTokenizerBase) -> None:
    prompt = [said("user", "One?"), said("assistant", "1"), said("user", "Two?")]
    rows = [{"prompt": [*prompt, said("user", str(i))], "completion": "2"} for i in range(10)]
    assert learned(prepared(jsonl(rows), chat).train[0], chat) == "2<|im_end|></s>"


def test_what_lies_outside_questions_and_answers_is_left_out_and_counted(
    jsonl: Write, chat: PreTrainedTokenizerBase
) -> None:
    rows = [
        {
            "conversations": [
                {"from": "gpt", "value": "Welcome"},
                {"from": "human", "value": f"Hi {i}"},
                {"from": "gpt", "value": "Yes"},
                {"from": "human", "value": "Thanks"},
            ]
        }
        for i in range(10)
    ]
    dataset = prepared(jsonl(rows), chat)
    assert dataset.counts.turns_cut == 20
    assert any(
        note.startswith("20 messages before the first question or after the last answer") for note in dataset.notes
    )
    assert "Welcome" not in whole(dataset.train[0], chat)
    assert "Thanks" not in whole(dataset.train[0], chat)


def test_tools_are_read_and_not_learned(jsonl: Write, plain: PreTrainedTokenizerBase) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    rows = [
        {
            "messages": [
                said("user", f"Add {i}"),
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "content": "2", "tool_call_id": "x"},
                said("assistant", [{"type": "text", "text": "It is "}, {"type": "text", "text": "2."}]),
            ],
            "tools": [],
        }
        for i in range(10)
    ]
    example = prepared(jsonl(rows), plain).train[0]
    assert "Tool: 2" in whole(example, plain)
    assert "Tool" not in learned(example, plain)
    assert '"name": "add"' in learned(example, plain)
    assert learned(example, plain).endswith(" It is 2.</s>")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"prompt": "Hi"}, "has no 'completion' (only prompt)"),
        ({"prompt": "Hi", "completion": None}, "'completion' is null, not text"),
        ({"prompt": "Hi", "completion": 4.2}, "'completion' is a number, not text"),
        ({"prompt": "Hi", "completion": " \n"}, "'completion' is empty"),
        ({"prompt": "", "completion": "x"}, "'prompt' is empty"),
        ({"prompt": "\ud800", "completion": "x"}, "'prompt' holds half of a surrogate pair"),
        ({"question": "Hi", "answer": "x"}, "this row is question/answer (question, answer), most others are prompt"),
        ({}, "has no 'prompt' and 'completion' (only an empty object)"),
    ],
)
def test_an_unusable_row_is_left_out_and_named_with_its_line(
    bad: dict[str, Any], message: str, jsonl: Write, plain: PreTrainedTokenizerBase
) -> None:
    good: list[Any] = [{"prompt": f"Hi {i}", "completion": "Yes"} for i in range(16)]
    dataset = prepared(jsonl([*good, bad]), plain)
    note = next(note for note in dataset.notes if "left out" in note)
    assert note.startswith(f"1 row that cannot be used is left out: my.jsonl:17: {message}")
    assert sum(map(len, (dataset.train, dataset.validation, dataset.test))) == 16
    assert dataset.counts.unusable == 1


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("hello", "'messages' is text, not a list of messages"),
        (None, "'messages' is null, not a list of messages"),
        ([], "'messages' is empty"),
        ("[{'role': 'user', 'content': 'x'}]", "'messages' is a list in text, but not in JSON (Expecting"),
        (["hi"], "messages[0] is text, not a message"),
        ([{"role": "wizard", "content": "x"}], "messages[0] has the role 'wizard'"),
        ([{"role": 3, "content": "x"}], "messages[0] has the role 3"),
        ([{"role": "user"}], "messages[0] has no 'content'"),
        ([said("user", "x"), said("assistant", None)], "'messages[1].content' is null"),
        ([said("user", "x"), said("assistant", "")], "'messages[1].content' is empty"),
        ([said("user", [{"type": "image_url"}])], "messages[0] holds content of type 'image_url'"),
        ([said("user", "x")], "no message of an assistant"),
        ([said("assistant", "x")], "the conversation has no question"),
    ],
)
def test_an_unusable_conversation_is_left_out_and_named_with_its_line(
    messages: Any, message: str, jsonl: Write, plain: PreTrainedTokenizerBase
) -> None:
    good: list[Any] = [{"messages": [said("user", f"{i}"), said("assistant", "x")]} for i in range(16)]
    dataset = prepared(jsonl([*good, {"messages": messages}]), plain)
    note = next(note for note in dataset.notes if "left out" in note)
    assert note.startswith(f"1 row that cannot be used is left out: my.jsonl:17: {message}")


@pytest.mark.parametrize(("rows", "bad"), [(10, 2), (20, 3), (60, 3), (200, 10)])
def test_a_few_bad_rows_do_not_stop_a_run_and_more_do(
    rows: int, bad: int, jsonl: Write, plain: PreTrainedTokenizerBase
) -> None:
    def write(bad: int) -> str:
        good = [{"question": f"{i}", "answer": "x"} for i in range(rows + 10 - bad)]
        return jsonl([*[{"question": "x"}] * bad, *good[10:], *good[:10]][: rows + 10 if rows == 10 else rows])

    assert prepared(write(bad), plain).counts.unusable == bad
    with pytest.raises(DataError, match=f"{bad + 2} of .* rows cannot be used"):
        prepared(write(bad + 2), plain)


def test_silent_system_messages_are_left_out(jsonl: Write, plain: PreTrainedTokenizerBase) -> None:
    rows = [
        {"messages": [said("system", (None, "", " ")[i % 3]), said("user", f"{i}"), said("assistant", "x")]}
        for i in range(20)
    ]
    assert whole(row_at(prepared(jsonl(rows), plain), 2), plain) == "User: 1\nAssistant: x</s>"


@pytest.mark.parametrize(("answer", "text"), [(42, "42"), (True, "true"), (False, "false")])
def test_whole_numbers_and_truths_are_answers(
    answer: Any, text: str, jsonl: Write, plain: PreTrainedTokenizerBase
) -> None:
    dataset = prepared(jsonl([{"prompt": f"Hi {i}", "completion": answer} for i in range(20)]), plain)
    assert learned(dataset.train[0], plain) == f"{text}</s>"


def test_an_ai_is_an_assistant(jsonl: Write, plain: PreTrainedTokenizerBase) -> None:
    rows = [{"conversations": [{"from": "human", "value": f"{i}"}, {"from": "ai", "value": "Yes"}]} for i in range(20)]
    assert learned(prepared(jsonl(rows), plain).train[0], plain) == " Yes</s>"


def test_all_unusable_rows_are_counted_and_the_first_are_shown(jsonl: Write, plain: PreTrainedTokenizerBase) -> None:
    rows = [{"question": f"{i}", "answer": "" if i % 2 else "x"} for i in range(40)]
    with pytest.raises(DataError) as caught:
        prepared(jsonl(rows), plain)
    first, *shown = caught.value.message.splitlines()
    assert first == "my.jsonl: 20 of 40 rows cannot be used:"
    assert shown[0].strip() == "my.jsonl:2: 'answer' is empty"
    assert shown[-1].strip() == "… and 15 more"
    assert len(shown) == 6


def test_unknown_columns_are_listed_with_the_accepted_shapes(jsonl: Write, plain: PreTrainedTokenizerBase) -> None:
    with pytest.raises(DataError, match=r"my\.jsonl has columns of no known shape: body, label\.") as caught:
        prepared(jsonl([{"body": "x", "label": 1}] * 20), plain)
    for column in ("messages", "conversations", "prompt", "instruction", "question", "text"):
        assert column in caught.value.remedy


BESIDE: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"system": "Be kind."}, {"prompt": "Hi {}", "completion": "Yes"}, "System: Be kind.\nUser: Hi 1\nAssistant: Yes"),
    ({"system_prompt": "Be kind."}, {"question": "Hi {}", "answer": "Yes"}, "Be kind.\nQuestion: Hi 1\nAnswer: Yes"),
    ({"context": "It rains."}, {"question": "Hi {}", "answer": "Yes"}, "Question: Hi 1\n\nIt rains.\nAnswer: Yes"),
    (
        {"context": ["It", "rains."]},
        {"question": "Hi {}", "answer": "Yes"},
        "Question: Hi 1\n\nIt\n\nrains.\nAnswer: Y",
    ),
    ({"Input": "It rains."}, {"prompt": "Hi {}", "completion": "Yes"}, "Hi 1\n\nIt rains.\nYes"),
    (
        {"system_prompt": "Be kind."},
        {"instruction": "Hi {}", "output": "Yes"},
        "Be kind.\n\n### Instruction:\nHi 1\n\n### Response:\nYes",
    ),
    (
        {"system": "Be kind.", "context": "It rains."},
        {"conversations": [{"from": "human", "value": "Hi {}"}, {"from": "gpt", "value": "Yes"}]},
        "System: Be kind.\nUser: Hi 1\n\nIt rains.\nAssistant: Yes",
    ),
    (
        {"system": "Be kind.", "context": "It rains."},
        {"prompt": [said("user", "Hi {}")], "completion": [said("assistant", "Yes")]},
        "System: Be kind.\nUser: Hi 1\n\nIt rains.\nAssistant: Yes",
    ),
    (
        {"history": [["One?", "1"]]},
        {"instruction": "Hi {}", "output": "Yes"},
        "### Instruction:\nOne?\n\n### Response:\n1</s>\n\n### Instruction:\nHi 1\n\n### Response:\nYes",
    ),
    (
        {"history": '[["One?", "1"]]'},
        {"question": "Hi {}", "answer": "Yes"},
        "Question: One?\nAnswer: 1</s>\nQuestion: Hi 1\nAnswer: Yes",
    ),
    (
        {"history": [said("user", "One?"), said("assistant", "1")]},
        {"prompt": "Hi {}", "completion": "Yes"},
        "User: One?\nAssistant: 1</s>\nUser: Hi 1\nAssistant: Yes",
    ),
]


@pytest.mark.parametrize(("extra", "row", "text"), BESIDE)
def test_columns_that_the_answer_depends_on_are_part_of_the_question(
    extra: dict[str, Any], row: dict[str, Any], text: str, jsonl: Write, plain: PreTrainedTokenizerBase
) -> None:
    rows = [json.loads(json.dumps(row).replace("{}", str(i))) | extra | {"id": i} for i in range(1, 21)]
    dataset = prepared(jsonl(rows), plain, max_length=512)
    assert whole(row_at(dataset, 1), plain).startswith(text)
    assert "Columns not used: id." in dataset.notes


def test_a_system_message_and_a_context_are_not_said_twice(jsonl: Write, plain: PreTrainedTokenizerBase) -> None:
    chat = [{"messages": [said("system", "A"), said("user", f"{i}"), said("assistant", "x")]} for i in range(20)]
    dataset = prepared(jsonl([{**row, "system": "B"} for row in chat]), plain)
    assert whole(row_at(dataset, 2), plain) == "System: A\nUser: 1\nAssistant: x</s>"
    assert "Columns not used: system." in dataset.notes
    rows = [{"context": "It rains.", "prompt": f"It rains. Hi {i}", "completion": "Yes"} for i in range(20)]
    assert whole(row_at(prepared(jsonl(rows), plain), 2), plain) == "It rains. Hi 1\nYes</s>"


def test_earlier_turns_are_learned_too(jsonl: Write, plain: PreTrainedTokenizerBase) -> None:
    rows = [{"instruction": f"{i}", "output": "Yes", "history": [["One?", "1"]]} for i in range(20)]
    assert learned(prepared(jsonl(rows), plain).train[0], plain) == "1</s>Yes</s>"


@pytest.mark.parametrize(
    ("history", "message"),
    [
        ("before", "'history' is text, not a list of [question, answer]"),
        ([["One?"]], "history[0] is not a pair of question and answer"),
        ([["One?", None]], "'history[0]' is null, not text"),
    ],
)
def test_a_history_that_is_none_is_refused(
    history: Any, message: str, jsonl: Write, plain: PreTrainedTokenizerBase
) -> None:
    rows = [{"instruction": f"{i}", "output": "Yes", "history": history} for i in range(20)]
    with pytest.raises(DataError) as caught:
        prepared(jsonl(rows), plain)
    assert message in caught.value.message


def test_a_context_that_is_no_text_is_named_as_unused(jsonl: Write, plain: PreTrainedTokenizerBase) -> None:
    rows = [{"question": f"{i}", "answer": "x", "context": {"title": "T"}, "url": ""} for i in range(20)]
    assert "Columns not used: context." in prepared(jsonl(rows), plain).notes


def test_a_label_is_learned_as_the_answer_to_its_text(jsonl: Write, plain: PreTrainedTokenizerBase) -> None:
    dataset = prepared(jsonl([{"text": f"Good {i}", "label": "praise"} for i in range(20)]), plain)
    assert learned(dataset.train[0], plain) == "praise</s>"
    assert any(note.startswith("The label is learned as the answer to the text") for note in dataset.notes)


def test_what_the_chat_template_needs_done_is_said(jsonl: Write, chat: PreTrainedTokenizerBase) -> None:
    chat.chat_template = str(chat.chat_template).replace(
        "{{ message['content'] }}", "{% if message['role'] != 'system' %}{{ message['content'] }}{% endif %}"
    )
    rows: list[Any] = [{"question": f"{i}", "answer": "x", "system": "Be kind."} for i in range(15)]
    dataset = prepared(jsonl([*rows, *({"question": f"And {i}", "answer": "x"} for i in range(5))]), chat)
    assert any(note.startswith("In 15 rows the system message is written with the first") for note in dataset.notes)
    assert "user\nBe kind.\n\n0<" in whole(row_at(dataset, 1), chat)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [('{"a": 1}', '{"a": 1}'), ("", "{}"), ({"a": 1}, '{"a": 1}'), ("one", '"one"'), ("[1]", '"[1]"')],
)
def test_the_arguments_of_a_tool_call_are_written_once(
    arguments: Any, text: str, jsonl: Write, chat: PreTrainedTokenizerBase
) -> None:
    chat.chat_template = str(chat.chat_template).replace(
        "{{ message['content'] }}",
        "{{ message['content'] }}{% for c in message['tool_calls'] %}{{ c.function | tojson }}{% endfor %}",
    )
    calls = [{"type": "function", "function": {"name": "add", "arguments": arguments}}]
    rows = [
        {"messages": [said("user", f"{i}"), {"role": "assistant", "content": "", "tool_calls": calls}]}
        for i in range(20)
    ]
    written = learned(prepared(jsonl(rows), chat).train[0], chat)
    assert written == f'{{"name": "add", "arguments": {text}}}<|im_end|></s>'


WITH_THOUGHTS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['reasoning_content'] %}{{ '<t>' + m['reasoning_content'] + '</t>' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_a_thought_is_learned_by_whichever_name_it_comes(
    name: str, jsonl: Write, chat: PreTrainedTokenizerBase
) -> None:
    rows = [{"messages": [said("user", f"{i}"), said("assistant", "Yes") | {name: "Hm."}]} for i in range(20)]
    for template in (WITH_THOUGHTS, WITH_THOUGHTS.replace("reasoning_content", name)):
        chat.chat_template = template
        dataset = prepared(jsonl(rows), chat)
        assert learned(dataset.train[0], chat) == "<t>Hm.</t>Yes<|im_end|></s>"
        assert not any("not used" in note for note in dataset.notes)


def test_keys_of_messages_that_are_not_used_are_named(jsonl: Write, plain: PreTrainedTokenizerBase) -> None:
    answer = said("assistant", "Yes") | {"weight": 1, "thinking": "Hm.", "reasoning": "Hm?", "id": 0, "audio": None}
    rows = [{"messages": [said("user", f"{i}") | {"timestamp": "now"}, answer]} for i in range(20)]
    assert "Keys of messages not used: timestamp, reasoning, id." in prepared(jsonl(rows), plain).notes
    rows = [{"prompt": [said("user", f"{i}")], "completion": [answer]} for i in range(20)]
    assert "Keys of messages not used: reasoning, id." in prepared(jsonl(rows), plain).notes


WITH_CALLS = WITH_THOUGHTS.replace(
    "{{ m['content']", "{% for c in m['tool_calls'] or [] %}{{ c['function'] | tojson }}{% endfor %}{{ m['content']"
)
ADD = '{"name": "add", "arguments": {"a": 1}}'


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (ADD, ADD),
        (json.loads(ADD), ADD),
        (f"[{ADD}, {ADD}]", ADD + ADD),
        ('{"name": "add", "arguments": "{\\"a\\": 1}"}', ADD),
        ('{"name": "now"}', '{"name": "now", "arguments": {}}'),
        ('{"name": "add", "parameters": {}}', '{"name": "add", "parameters": {}}'),
        ("add 1", "add 1"),
    ],
)
def test_a_turn_of_sharegpt_that_is_a_call_is_written_as_one(
    value: Any, text: str, jsonl: Write, chat: PreTrainedTokenizerBase
) -> None:
    chat.chat_template = WITH_CALLS.replace("tojson }}", "tojson }}!")
    rows = [
        {"conversations": [{"from": "human", "value": f"{i}"}, {"from": "function_call", "value": value}]}
        for i in range(20)
    ]
    written = learned(prepared(jsonl(rows), chat).train[0], chat)
    calls = written.removesuffix("<|im_end|></s>").replace("}!", "}")
    assert calls == text
    assert ("!" in written) == ("parameters" not in text and text != "add 1")


def test_tools_in_text_are_written_once(jsonl: Write, chat: PreTrainedTokenizerBase) -> None:
    chat.chat_template = "{{ tools | tojson }}" + WITH_THOUGHTS
    tool = {"type": "function", "function": {"name": "add"}}
    texts = []
    for tools in ([tool], [json.dumps(tool)], json.dumps([tool]), json.dumps([json.dumps(tool)])):
        rows = [{"messages": [said("user", f"{i}"), said("assistant", "Yes")], "tools": tools} for i in range(20)]
        texts.append(whole(row_at(prepared(jsonl(rows), chat), 1), chat))
    assert texts[0].startswith('[{"type": "function", "function": {"name": "add"}}]<|im_start|>')
    assert len(set(texts)) == 1


@pytest.mark.parametrize("mark", [{"weight": 0}, {"train": False}])
def test_answers_that_are_marked_as_such_are_context(
    mark: dict[str, Any], jsonl: Write, chat: PreTrainedTokenizerBase
) -> None:
    first, last = said("assistant", "A"), said("assistant", "B")
    rows = [{"messages": [said("user", f"{i}"), first | mark, said("user", "And?"), last]} for i in range(20)]
    example = prepared(jsonl(rows), chat).train[0]
    assert learned(example, chat) == "B<|im_end|></s>"
    rows = [{"messages": [said("user", f"{i}"), first, said("user", "And?"), last | mark]} for i in range(20)]
    dataset = prepared(jsonl(rows), chat)
    assert learned(dataset.train[0], chat) == "A<|im_end|></s>"
    assert dataset.counts.turns_cut == 40
    with pytest.raises(DataError, match="no message of an assistant"):
        prepared(jsonl([{"messages": [said("user", f"{i}"), first | mark]} for i in range(20)]), chat)


@pytest.mark.parametrize("completion", ["Yes", "Yes<|im_end|>", "Yes<|im_end|>\n"])
def test_prompts_that_are_formatted_already_are_taken_as_they_are(
    completion: str, jsonl: Write, chat: PreTrainedTokenizerBase
) -> None:
    prompt = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    rows = [{"prompt": prompt.format(i), "completion": completion} for i in range(20)]
    dataset = prepared(jsonl(rows), chat)
    example = row_at(dataset, 2)
    assert chat.decode(example.prompt_ids) == prompt.format(1)
    assert learned(example, chat) == completion.strip() + "</s>"
    assert "Template: none (the prompts are written in the model's own turns already)." in dataset.notes
    # One row among many that quotes such a token is a question like the others.
    quoting = [{"prompt": f"What is {i}?", "completion": "x"} for i in range(19)] + rows[:1]
    assert prepared(jsonl(quoting), chat).template == "the model's chat template"
    llama2 = [{"instruction": f"[INST] Hi {i} [/INST]", "output": " Yes"} for i in range(20)]
    assert prepared(jsonl(llama2), chat).template == "the model's chat template"
    chat.chat_template = "{% for m in messages %}{{ '[INST] ' + m['content'] + ' [/INST]' }}{% endfor %}"
    assert whole(row_at(prepared(jsonl(llama2), chat), 2), chat) == "[INST] Hi 1 [/INST] Yes</s>"


@pytest.mark.parametrize(
    ("columns", "shape"),
    [
        ("instruction answer", "alpaca"),
        ("question response", "question/answer"),
        ("query response", "question/answer"),
        ("problem solution", "question/answer"),
        ("prompt answer", "prompt/completion"),
        ("prompt output", "prompt/completion"),
        ("dialogue summary", "prompt/completion"),
        ("document summary", "prompt/completion"),
        ("input output", "prompt/completion"),
        ("source target", "prompt/completion"),
    ],
)
def test_pairs_of_columns_by_other_names(
    columns: str, shape: str, jsonl: Write, plain: PreTrainedTokenizerBase
) -> None:
    asked, answered = columns.split()
    rows = [{asked: f"Hi {i}", answered: "Yes", "text": "x", "topic": "y"} for i in range(20)]
    dataset = prepared(jsonl(rows), plain)
    assert dataset.notes[0] == f"20 rows of {shape} ({asked}, {answered})."
    assert "Columns not used: text, topic." in dataset.notes
    assert learned(dataset.train[0], plain).strip() == "Yes</s>"
    assert "Hi" in plain.decode(dataset.train[0].prompt_ids)
