"""Splits depend on what rows say, never on their order; equal rows never lie on both sides."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase

from bandsearch.data import splits as splitting
from bandsearch.data.dataset import Dataset, prepare
from bandsearch.values.errors import DataError
from bandsearch.values.spec import DataSpec

Write = Callable[[Sequence[Any]], str]
relaxed = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def rows_of(count: int) -> list[dict[str, str]]:
    return [{"question": f"What is {i}?", "answer": f"It is {i}"} for i in range(count)]


def prepared(path: str, tokenizer: PreTrainedTokenizerBase, seed: int = 0, **options: Any) -> Dataset:
    return prepare(DataSpec(name=path, **options), tokenizer, seed)


def splits(dataset: Dataset) -> list[tuple[tuple[int, ...], ...]]:
    return [[e.input_ids.tolist() for e in part] for part in (dataset.train, dataset.validation, dataset.test)]


def said(row: dict[str, str]) -> tuple[str, ...]:
    """What a row says but for spaces and cases."""
    return tuple(" ".join(value.split()).casefold() for value in row.values())


def varied(row: dict[str, str], source: random.Random) -> dict[str, str]:
    """The same content with other spaces and cases."""
    change = source.choice((str.upper, str.lower, str.title, lambda text: text.replace(" ", "  \n"), str))
    return {key: f"{change(value)} " for key, value in row.items()}


@relaxed
@given(count=st.integers(10, 60), copies=st.integers(0, 80), seed=st.integers(0, 10**6))
def test_a_duplicate_is_never_on_both_sides(
    jsonl: Write, plain: PreTrainedTokenizerBase, count: int, copies: int, seed: int
) -> None:
    source = random.Random(seed)
    distinct = rows_of(count)
    rows = distinct + [varied(source.choice(distinct), source) for _ in range(copies)]
    source.shuffle(rows)
    dataset = prepared(jsonl(rows), plain)
    sides = [
        {said(rows[int(e.place.rsplit(":", 1)[1]) - 1]) for e in part}
        for part in (dataset.train, dataset.validation, dataset.test)
    ]
    assert sum(map(len, sides)) == len(set.union(*sides))
    assert all(sides)
    # Rows that differ in case or spaces may both matter, equal ones do not.
    exact = len({json.dumps(row) for row in rows})
    assert sum(len(part) for part in splits(dataset)) == exact
    assert dataset.counts.duplicates == len(rows) - exact
    assert any("duplicate row" in note for note in dataset.notes) == (len(rows) > exact)


@relaxed
@given(prompts=st.integers(12, 40), answers=st.integers(1, 6), often=st.integers(0, 30), seed=st.integers(0, 10**6))
def test_a_prompt_with_several_answers_is_never_on_both_sides(
    jsonl: Write, plain: PreTrainedTokenizerBase, prompts: int, answers: int, often: int, seed: int
) -> None:
    source = random.Random(seed)
    rows = [{"prompt": f"What is {i}?", "completion": f"{i} or {k}"} for i in range(prompts) for k in range(answers)]
    rows += [{"prompt": "What is 0?", "completion": f"Perhaps {k}"} for k in range(often)]
    rows = [varied(row, source) for row in rows]
    source.shuffle(rows)
    dataset = prepared(jsonl(rows), plain)
    parts = (dataset.train, dataset.validation, dataset.test)
    sides = [{said(rows[int(e.place.rsplit(":", 1)[1]) - 1])[0] for e in part} for part in parts]
    assert sum(map(len, sides)) == len(set.union(*sides)) == prompts
    assert len(dataset.train) >= sum(map(len, parts)) / 2
    assert all(sides)
    asked = {(said(rows[int(e.place.rsplit(":", 1)[1]) - 1])[0], e.group) for part in parts for e in part}
    assert len(asked) == len({group for _, group in asked}) == prompts


def test_a_conversation_is_known_by_what_comes_before_its_first_learned_answer(
    jsonl: Write, plain: PreTrainedTokenizerBase
) -> None:
    def said(*contents: str) -> list[dict[str, str]]:
        return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]

    rows = [{"messages": said(f"What is {i}?", f"It is {k}", "And?", f"{k}")} for i in range(12) for k in range(4)]
    dataset = prepared(jsonl(rows), plain)
    sides = [{(int(e.place[9:]) - 1) // 4 for e in part} for part in (dataset.train, dataset.validation, dataset.test)]
    assert sum(map(len, sides)) == 12


def under(system: str, question: str, answer: str) -> dict[str, Any]:
    contents = {"system": system, "user": question, "assistant": answer}
    return {"messages": [{"role": role, "content": content} for role, content in contents.items()]}


@relaxed
@given(questions=st.integers(10, 30), systems=st.integers(2, 5), seed=st.integers(0, 10**6))
def test_a_question_under_several_system_messages_is_never_on_both_sides(
    jsonl: Write, plain: PreTrainedTokenizerBase, questions: int, systems: int, seed: int
) -> None:
    rows = [under(f"Today is day {k}.", f"What is {i}?", f"{i}") for i in range(questions) for k in range(systems)]
    random.Random(seed).shuffle(rows)
    dataset = prepared(jsonl(rows), plain)
    parts = (dataset.train, dataset.validation, dataset.test)
    sides = [{e.answer for e in part} for part in parts]
    assert sum(map(len, sides)) == questions
    assert sum(map(len, parts)) == len(rows)
    assert not any(note.startswith("Few different") for note in dataset.notes)


def test_what_is_asked_in_the_system_message_alone_is_kept_apart_by_it(
    jsonl: Write, plain: PreTrainedTokenizerBase
) -> None:
    rows = [under(f"Document {i}", "Summarise it.", f"{i} or {k}") for i in range(20) for k in range(2)]
    dataset = prepared(jsonl(rows), plain)
    sides = [{e.answer.split()[0] for e in part} for part in (dataset.train, dataset.validation, dataset.test)]
    assert sum(map(len, sides)) == 20
    assert any("may be asked in validation and test too, under another system" in note for note in dataset.notes)
    rows = [under(f"Document {i % 3}", "Summarise it.", f"{i}") for i in range(40)]
    notes = prepared(jsonl(rows), plain).notes
    assert any(note.startswith("Few different prompts") for note in notes)
    assert not any("under another system message" in note for note in notes)


def test_stock_questions_about_many_documents_are_told_apart_by_the_documents(
    jsonl: Write, plain: PreTrainedTokenizerBase
) -> None:
    rows = [under(f"Document {i}", f"Question {k}?", f"{i} {k}") for i in range(30) for k in range(12)]
    dataset = prepared(jsonl(rows), plain)
    asked = [{e.answer.split()[1] for e in part} for part in (dataset.train, dataset.validation, dataset.test)]
    assert asked[0] == set(map(str, range(12)))
    assert min(map(len, asked)) > 6
    assert any("under another system message" in note for note in dataset.notes)


def test_few_prompts_are_split_by_their_answers_and_this_is_said(jsonl: Write, plain: PreTrainedTokenizerBase) -> None:
    rows = [{"prompt": f"Write poem {i % 3}.", "completion": f"Roses {i}"} for i in range(40)]
    dataset = prepared(jsonl(rows), plain)
    assert [len(part) for part in splits(dataset)] == [32, 4, 4]
    assert any(note.startswith("Few different prompts") for note in dataset.notes)
    many = prepared(jsonl(rows_of(40)), plain)
    assert not any(note.startswith("Few different prompts") for note in many.notes)


@relaxed
@given(seed=st.integers(0, 10**6))
def test_the_order_of_rows_changes_nothing(jsonl: Write, plain: PreTrainedTokenizerBase, seed: int) -> None:
    rows = [*rows_of(40), {"question": "what is 3?", "answer": "it is 3"}]
    first = prepared(jsonl(rows), plain)
    random.Random(seed).shuffle(rows)
    second = prepared(jsonl(rows), plain)
    assert splits(first) == splits(second)
    assert first.fingerprint == second.fingerprint


@pytest.mark.parametrize(("count", "sizes"), [(10, (8, 1, 1)), (20, (16, 2, 2)), (200, (160, 20, 20))])
def test_sizes(count: int, sizes: tuple[int, ...], jsonl: Write, plain: PreTrainedTokenizerBase) -> None:
    assert tuple(map(len, splits(prepared(jsonl(rows_of(count)), plain)))) == sizes


def test_another_content_is_another_fingerprint(jsonl: Write, plain: PreTrainedTokenizerBase) -> None:
    rows = rows_of(20)
    first = prepared(jsonl(rows), plain).fingerprint
    rows[7]["answer"] = "It IS 7"
    assert prepared(jsonl(rows), plain).fingerprint != first
    renamed = [{"prompt": row["question"], "completion": row["answer"]} for row in rows_of(20)]
    assert prepared(jsonl(renamed), plain).fingerprint != first


def test_max_examples_chooses_by_seed_and_splits_as_before(jsonl: Write, plain: PreTrainedTokenizerBase) -> None:
    path = jsonl(rows_of(100))
    first, again, other = (prepared(path, plain, seed, max_examples=30) for seed in (0, 0, 1))
    assert [len(part) for part in splits(first)] == [24, 3, 3]
    assert splits(first) == splits(again)
    assert splits(first) != splits(other)
    assert first.counts.not_sampled == 70
    assert splits(prepared(path, plain, 0)) == splits(prepared(path, plain, 1))


def test_too_few_rows_are_refused(jsonl: Write, plain: PreTrainedTokenizerBase) -> None:
    with pytest.raises(DataError, match=r"my\.jsonl holds 9 different rows, too few .* Give at least 10"):
        prepared(jsonl(rows_of(9) * 5), plain)
    with pytest.raises(DataError, match="Raise --max-examples"):
        prepared(jsonl(rows_of(50)), plain, max_examples=5)


def test_nothing_to_learn_names_the_length_that_would_do(jsonl: Write, plain: PreTrainedTokenizerBase) -> None:
    rows = [{"prompt": "word " * 50 + str(i), "completion": f"It is {i}"} for i in range(20)]
    with pytest.raises(DataError, match=r"No answer of my\.jsonl begins within the first 16 tokens") as caught:
        prepared(jsonl(rows), plain, max_length=16)
    enough = int(caught.value.remedy.split("--max-length ")[1].split(",")[0])
    assert prepared(jsonl(rows), plain, max_length=enough).counts.dropped <= 10
    plain.model_max_length = 16
    with pytest.raises(DataError, match="as long as this model reads"):
        prepared(jsonl(rows), plain)


def test_cut_and_dropped_rows_are_counted(jsonl: Write, plain: PreTrainedTokenizerBase) -> None:
    long_answers = [{"prompt": f"{i}", "completion": "word " * 30} for i in range(15)]
    long_prompts = [{"prompt": "word " * 30 + str(i), "completion": "yes"} for i in range(5)]
    dataset = prepared(jsonl(long_answers + long_prompts), plain, max_length=12)
    assert (dataset.counts.truncated, dataset.counts.dropped) == (15, 5)
    assert "15 rows cut to 12 tokens." in dataset.notes
    assert "5 rows dropped because the answer begins after 12 tokens." in dataset.notes
    assert sum(map(len, splits(dataset))) == 15
    assert all(len(e.input_ids) <= 12 and any(e.supervised) for e in dataset.train)


def test_more_than_a_fifth_too_long_is_refused_unless_a_length_is_given(
    jsonl: Write, plain: PreTrainedTokenizerBase
) -> None:
    def rows(long: int) -> list[dict[str, str]]:
        cut = [{"question": f"{i}", "answer": "word " * 1500} for i in range(long // 2)]
        dropped = [{"question": "word " * 1500 + str(i), "answer": "yes"} for i in range(long - long // 2)]
        return cut + dropped + rows_of(40 - long)

    path = jsonl(rows(9))
    words = r"^9 of 40 rows of my\.jsonl are longer .* 4 would be cut and 5 dropped"
    with pytest.raises(DataError, match=words) as caught:
        prepared(path, plain)
    enough = int(caught.value.remedy.split("--max-length ")[1].split(",")[0])
    whole = prepared(path, plain, max_length=enough)
    assert (whole.counts.truncated, whole.counts.dropped) == (0, 0)
    assert "--max-length 1024" in caught.value.remedy
    given = prepared(path, plain, max_length=1024)
    assert (given.counts.truncated, given.counts.dropped, given.max_length) == (4, 5, 1024)
    assert prepared(jsonl(rows(8)), plain).counts.dropped == 4
    with pytest.raises(DataError, match=r"9 of 40 rows.*That is as long as this model reads"):
        prepare(DataSpec(name=jsonl(rows(9))), plain, 0, context=512)
    assert prepare(DataSpec(name=path, max_length=2048), plain, 0, context=512).max_length == 512


@relaxed
@given(words=st.lists(st.integers(0, 60), min_size=12, max_size=20), max_length=st.integers(8, 40))
@pytest.mark.parametrize("opening", [False, True])
def test_every_token_of_a_long_text_is_predicted_once_and_in_one_split(
    jsonl: Write, plain: PreTrainedTokenizerBase, opening: bool, words: list[int], max_length: int
) -> None:
    if opening:
        plain.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    texts = [f"{i}:" + " word" * count for i, count in enumerate(words)]
    dataset = prepared(jsonl([{"text": text} for text in texts]), plain, max_length=max_length)
    parts = (dataset.train, dataset.validation, dataset.test)
    sides = [{e.place for e in part} for part in parts]
    assert sum(map(len, sides)) == len(set.union(*sides)) == len(texts)
    examples = [example for part in parts for example in part]
    assert all(len(example.input_ids) <= max_length for example in examples)
    bos = [1] if opening else []
    for line, text in enumerate(texts, start=1):
        pieces = [e for e in examples if e.place == f"my.jsonl:{line}"]
        ids = [*bos, *plain(text, add_special_tokens=False)["input_ids"], plain.eos_token_id]
        assert len(pieces) == max(1, math.ceil((len(ids) - 1) / (max_length - 1)))
        assert all(piece.input_ids[:1].tolist() == bos for piece in pieces if opening)
        predicted = [token for e in pieces for token in e.input_ids[e.supervised].tolist()]
        assert sorted(predicted) == sorted(ids[1:])
        assert len({e.group for e in pieces}) == 1
    assert dataset.counts.truncated == dataset.counts.dropped == 0
    long = [note for note in dataset.notes if "divided into" in note]
    assert bool(long) == (len(examples) > len(texts))


def test_splits_of_a_folder_are_used_and_kept_apart(tmp_path: Path, plain: PreTrainedTokenizerBase) -> None:
    rows = rows_of(50)
    for name, part in (("train", rows[:40] + rows[45:47]), ("test", rows[40:46] + rows[40:41]), ("notes", [])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    dataset = prepared(str(tmp_path), plain)
    assert {e.answer for e in dataset.test} == {f"It is {i}" for i in range(40, 46)}
    assert (len(dataset.train), len(dataset.validation)) == (37, 4)
    assert (dataset.counts.leaked, dataset.counts.duplicates) == (1, 1)
    assert "test as the data set brings them" in dataset.notes[-1]
    (tmp_path / "valid.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[44:50]))
    dataset = prepared(str(tmp_path), plain)
    assert {e.answer for e in dataset.validation} == {f"It is {i}" for i in range(46, 50)}
    assert len(dataset.train) == 40
    small = prepared(str(tmp_path), plain, max_examples=20)
    assert [len(part) for part in splits(small)] == [16, 2, 2]


def test_training_rows_that_ask_what_the_own_test_asks_are_left_out(
    tmp_path: Path, plain: PreTrainedTokenizerBase
) -> None:
    rows = rows_of(50)
    again = [{"question": row["question"], "answer": "I do not know"} for row in rows[40:43]]

    def write(train: list[dict[str, str]]) -> Dataset:
        for name, part in (("train", train), ("test", rows[40:])):
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
        return prepared(str(tmp_path), plain)

    dataset = write(rows[:40] + again)
    assert {e.answer for e in dataset.test} == {f"It is {i}" for i in range(40, 50)}
    assert dataset.counts.leaked == 3
    assert "3 rows dropped because validation or test ask the same." in dataset.notes
    # Where most of the training data would go, it stays, and this is said.
    dataset = write([{**row, "answer": f"No, {k}"} for row in rows[40:] for k in range(5)])
    assert (dataset.counts.leaked, len(dataset.test)) == (0, 10)
    assert len(dataset.train) + len(dataset.validation) == 50
    assert any(note.startswith("Few different prompts") for note in dataset.notes)


def test_conversations_that_are_taught_answer_by_answer_are_never_on_both_sides(
    jsonl: Write, chat: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A template that writes the number of messages in front of the last one writes every answer anew."""
    chat.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
        "{% if loop.last and m['role'] == 'assistant' %}{{ '(last) ' }}{% endif %}{{ m['content'] + '<|im_end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )

    def row(i: int, turns: int) -> dict[str, Any]:
        said = [{"role": ("user", "assistant")[k % 2], "content": f"{i} and {k}"} for k in range(2 * turns)]
        return {"messages": said}

    path = jsonl([row(i, 3) for i in range(40)] + [row(40 + i, 1) for i in range(20)])
    dataset = prepared(path, chat)
    parts = (dataset.train, dataset.validation, dataset.test)
    sides = [{e.place for e in part} for part in parts]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 60
    assert sum(map(len, parts)) == 40 * 3 + 20
    assert {
        len({e.group for e in part if e.place == place}) for part in parts for place in {e.place for e in part}
    } == {1}
    assert (dataset.counts.rewritten, dataset.counts.copies) == (40, 120)
    assert any(note.startswith("In 40 conversations every answer is learned from a copy") for note in dataset.notes)
    assert "120 examples in all" in " ".join(dataset.notes)
    assert dataset.notes[-1].startswith(f"{len(dataset.train)} examples train")
    # What looks at the first examples sees as many conversations, but for chance.
    assert len({e.place for e in dataset.train[:12]}) >= 8
    # A tenth is a tenth of the examples, and so is the largest split that measures.
    assert all(14 <= len(part) <= 14 + 2 for part in parts[1:])
    monkeypatch.setattr(splitting, "LARGEST", 5)
    assert all(5 <= len(part) <= 5 + 2 for part in (prepared(path, chat).validation, prepared(path, chat).test))
