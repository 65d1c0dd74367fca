"""Several sources, files of validation and test rows, answers that are marked bad or kept secret."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from bandsearch.data import reading
from bandsearch.data.dataset import Dataset, prepare
from bandsearch.data.files import read_file
from bandsearch.data.reading import read_of
from bandsearch.values.errors import DataError
from bandsearch.values.spec import DataSpec

Write = Callable[..., str]


def prepared(path: str, tokenizer: PreTrainedTokenizerBase, *also: str, **options: Any) -> Dataset:
    return prepare(DataSpec(name=path, also=also, **options), tokenizer, 0)


def asking(start: int, stop: int) -> list[dict[str, Any]]:
    return [{"question": f"What is {i}?", "answer": f"It is {i}"} for i in range(start, stop)]


def chatting(start: int, stop: int) -> list[dict[str, Any]]:
    return [
        {"messages": [{"role": "user", "content": f"Is it {i}?"}, {"role": "assistant", "content": f"It is {i}"}]}
        for i in range(start, stop)
    ]


def answers(*parts: Sequence[Any]) -> set[str]:
    return {example.answer for part in parts for example in part}


@pytest.mark.parametrize("marks", [(True, False), (1, 0), ("True", "False")])
def test_answers_that_are_marked_bad_are_not_learned(
    marks: tuple[Any, Any], jsonl: Write, plain: PreTrainedTokenizerBase
) -> None:
    rows = [{"prompt": f"{i}?", "completion": f"{'Yes' if i % 3 else 'No'} {i}", "label": marks[0]} for i in range(60)]
    for row in rows[::3]:
        row["label"] = marks[1]
    dataset = prepared(jsonl(rows), plain)
    learned = answers(dataset.train, dataset.validation, dataset.test)
    assert len(learned) == 40
    assert all(answer.startswith("Yes") for answer in learned)
    assert any(note.startswith("20 rows left out whose label says that the answer is a bad") for note in dataset.notes)
    everything = prepared(jsonl(rows), plain, columns={"label": "mark"})
    assert len(answers(everything.train, everything.validation, everything.test)) == 60


def test_a_label_of_another_kind_leaves_all_answers(jsonl: Write, plain: PreTrainedTokenizerBase) -> None:
    rows = [{"prompt": f"{i}?", "completion": f"{i}", "label": i % 4} for i in range(20)]
    dataset = prepared(jsonl(rows), plain)
    assert (dataset.counts.marked_bad, len(answers(dataset.train, dataset.validation, dataset.test))) == (0, 20)


def test_openai_preferences_are_named_and_the_preferred_can_be_learned(
    jsonl: Write, plain: PreTrainedTokenizerBase
) -> None:
    rows = [
        {
            "input": {"messages": [{"role": "user", "content": f"Hi {i}"}]},
            "preferred_output": [{"role": "assistant", "content": f"Good {i}"}],
            "non_preferred_output": [{"role": "assistant", "content": f"Bad {i}"}],
        }
        for i in range(20)
    ]
    with pytest.raises(DataError, match=r"preference data \(preferred_output, non_preferred_output\)") as caught:
        prepared(jsonl(rows), plain)
    theirs, ours = caught.value.remedy.split()[1].split("=")
    dataset = prepared(jsonl(rows), plain, columns={theirs: ours})
    assert answers(dataset.train, dataset.validation, dataset.test) == {f"Good {i}" for i in range(20)}


def test_tools_beside_the_messages_of_openai_s_question_are_offered(
    jsonl: Write, chat: PreTrainedTokenizerBase
) -> None:
    chat.chat_template = "{{ tools | tojson }}" + str(chat.chat_template)
    tool = {"type": "function", "function": {"name": "add"}}
    rows = [
        {
            "input": {"messages": [{"role": "user", "content": f"Hi {i}"}], "tools": [tool]},
            "preferred_output": [{"role": "assistant", "content": f"Good {i}"}],
        }
        for i in range(20)
    ]
    example = prepared(jsonl(rows), chat, columns={"preferred_output": "output"}).train[0]
    assert chat.decode(example.input_ids.tolist()).startswith(json.dumps([tool]))


SECRETS: list[Callable[[int], dict[str, Any]]] = [
    lambda i: {"question": f"Secret {i}?", "answer": None},
    lambda i: {"question": f"Secret {i}?", "answer": " "},
    lambda i: {"question": f"Secret {i}?", "answer": -1},
    lambda i: {"question": f"Secret {i}?"},
]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_split_whose_answers_are_kept_secret_is_as_if_it_were_not_there(
    split: str, secret: Callable[[int], dict[str, Any]], tmp_path: Path, plain: PreTrainedTokenizerBase
) -> None:
    other = "test" if split == "validation" else "validation"
    for name, rows in (
        ("train", asking(0, 40)),
        (other, asking(40, 45)),
        (split, [secret(i) for i in range(30)] + asking(90, 91)),
    ):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = prepared(str(tmp_path), plain)
    (tmp_path / f"{split}.jsonl").unlink()
    without = prepared(str(tmp_path), plain)
    assert dataset.fingerprint == without.fingerprint
    assert f"The 31 {split} rows of {tmp_path.name} are not used: they have no answers." in dataset.notes
    for part in ("train", "validation", "test"):
        assert answers(getattr(dataset, part)) == answers(getattr(without, part))
    assert dataset.counts == without.counts


def test_conversations_without_an_answer_are_secret_too(tmp_path: Path, plain: PreTrainedTokenizerBase) -> None:
    asked = [{"messages": row["messages"][:1]} for row in chatting(50, 70)]
    for name, rows in (("train", chatting(0, 40)), ("test", asked)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = prepared(str(tmp_path), plain)
    assert (len(dataset.test), len(dataset.train)) == (4, 32)
    # Where half of the answers are there the others are missing by mistake.
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked + chatting(70, 90)))
    with pytest.raises(DataError, match="20 of 40 rows cannot be used"):
        prepared(str(tmp_path), plain)


def test_sources_are_joined_each_by_its_own_shape(jsonl: Write, plain: PreTrainedTokenizerBase) -> None:
    first, second = jsonl(asking(0, 30), "a.jsonl"), jsonl(chatting(30, 50), "b.jsonl")
    dataset = prepared(first, plain, second)
    assert answers(dataset.train, dataset.validation, dataset.test) == {f"It is {i}" for i in range(50)}
    assert (dataset.name, dataset.shape) == ("a.jsonl + b.jsonl", "question/answer + chat messages")
    assert "20 rows of chat messages (messages) in b.jsonl." in dataset.notes
    assert dataset.fingerprint != prepared(first, plain).fingerprint
    jsonl([*chatting(30, 49), *chatting(60, 61)], "b.jsonl")
    assert dataset.fingerprint != prepared(first, plain, second).fingerprint


def test_columns_are_named_in_the_sources_that_have_them(jsonl: Write, plain: PreTrainedTokenizerBase) -> None:
    first = jsonl([{"article": f"{i}?", "answer": f"{i}"} for i in range(20)], "a.jsonl")
    second = jsonl([{"question": f"{i}?", "answer": f"{i}"} for i in range(20, 40)], "b.jsonl")
    dataset = prepared(first, plain, second, columns={"article": "question"})
    assert answers(dataset.train, dataset.validation, dataset.test) == {f"{i}" for i in range(40)}
    with pytest.raises(DataError, match=r"a\.jsonl and b\.jsonl has no column 'artcle'.*Did you mean article"):
        prepared(first, plain, second, columns={"artcle": "question"})


def test_plain_text_is_not_joined_with_conversations(jsonl: Write, plain: PreTrainedTokenizerBase) -> None:
    texts = jsonl([{"text": f"Text {i}"} for i in range(20)], "texts.jsonl")
    with pytest.raises(DataError, match="question/answer and plain text, which cannot be learned in one run"):
        prepared(jsonl(asking(0, 20)), plain, texts)


def test_files_of_validation_and_test_rows(jsonl: Write, tmp_path: Path, plain: PreTrainedTokenizerBase) -> None:
    for name, rows in (("train", asking(0, 40)), ("test", asking(40, 50))):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    validation, test = jsonl(asking(35, 40), "mine.jsonl"), jsonl(asking(70, 73), "theirs.jsonl")
    dataset = prepared(str(tmp_path), plain, validation=validation, test=test)
    assert answers(dataset.train) == {f"It is {i}" for i in range(35)}
    assert answers(dataset.validation) == {f"It is {i}" for i in range(35, 40)}
    assert answers(dataset.test) == {f"It is {i}" for i in range(70, 73)}
    assert "3 rows of question/answer (question, answer) in theirs.jsonl." in dataset.notes
    secret = jsonl([{"question": f"{i}?"} for i in range(9)], "secret.jsonl")
    dataset = prepared(str(tmp_path), plain, validation=validation, test=secret)
    assert answers(dataset.test) < {f"It is {i}" for i in range(35)}
    assert "The 9 test rows of secret.jsonl are not used: they have no answers." in dataset.notes


def as_json(rows: Sequence[Mapping[str, str]]) -> str:
    return json.dumps(rows)


def as_csv(rows: Sequence[Mapping[str, str]]) -> str:
    return "".join(f"{','.join(line)}\n" for line in (rows[0], *(row.values() for row in rows)))


def as_lines(rows: Sequence[Mapping[str, str]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize(("name", "written"), [("a.jsonl", as_lines), ("a.json", as_json), ("a.csv", as_csv)])
def test_of_a_large_file_a_sample_is_read_with_its_lines(
    name: str,
    written: Callable[..., str],
    tmp_path: Path,
    plain: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reading, "FEWEST_READ", 100)
    path = tmp_path / name
    path.write_text(written(asking(0, 1000)))
    rows = read_file(path, 5)
    assert len(rows) == 100
    numbers = [int(re.split(r" row |:", row.place)[1]) for row in rows]
    assert [row.values["question"] for row in rows] == [f"What is {number - 1}?" for number in numbers]
    assert max(numbers) > 800
    dataset = prepared(str(path), plain, max_examples=20)
    assert (dataset.counts.read, dataset.counts.not_sampled) == (200, 180)
    assert "Because of --max-examples at most 200 rows of a file or split were read, chosen at random." in dataset.notes
    assert [*read_of(100, 5)] == [*range(100)] == [*read_of(100, None)]


def test_rows_that_train_and_measure_alike_are_refused_by_that_name(
    jsonl: Write, plain: PreTrainedTokenizerBase
) -> None:
    rows = jsonl(asking(0, 40))
    with pytest.raises(DataError, match="stand in its validation or test rows too"):
        prepared(rows, plain, test=rows)
