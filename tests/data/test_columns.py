"""A person says what columns are read as; what cannot be meant is said with what to do."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase
from typer.testing import CliRunner

from bandsearch import api
from bandsearch.cli.app import app
from bandsearch.data.cells import fold
from bandsearch.data.columns import parse_columns
from bandsearch.data.dataset import Dataset, prepare
from bandsearch.values.errors import DataError, UsageError
from bandsearch.values.spec import DataSpec

Write = Callable[[Sequence[Any]], str]

NEWS = [{"id": i, "Article": f"It rains {i}", "highlights": f"Rain {i}"} for i in range(20)]


def prepared(path: str, tokenizer: PreTrainedTokenizerBase, columns: str) -> Dataset:
    return prepare(DataSpec(name=path, columns=parse_columns(columns)), tokenizer, 0)


def refused(path: str, tokenizer: PreTrainedTokenizerBase, columns: str = "") -> DataError:
    with pytest.raises(DataError) as caught:
        prepare(DataSpec(name=path, columns=parse_columns(columns) if columns else {}), tokenizer, 0)
    return caught.value


def test_columns_are_read_as_a_person_says(jsonl: Write, plain: PreTrainedTokenizerBase) -> None:
    dataset = prepared(jsonl(NEWS), plain, "article=prompt, highlights=completion")
    by_their_names = [{"prompt": row["Article"], "completion": row["highlights"]} for row in NEWS]
    plainly = prepare(DataSpec(name=jsonl(by_their_names)), plain, 0)
    assert [each.input_ids.tolist() for each in dataset.train] == [each.input_ids.tolist() for each in plainly.train]
    assert dataset.fingerprint == plainly.fingerprint
    assert "Columns by other names: article is prompt, highlights is completion." in dataset.notes
    assert "Columns not used: id." in dataset.notes
    # What is not learned under its own name can be put out of the way.
    rows = [{**row, "text": "x"} for row in NEWS]
    assert prepared(jsonl(rows), plain, "text=other,Article=text").shape == "plain text"
    swapped = prepared(jsonl(by_their_names), plain, "prompt=completion,completion=prompt")
    assert swapped.train[0].answer.startswith("It rains")


def test_a_column_that_is_not_there_is_answered_with_those_that_are(
    jsonl: Write, plain: PreTrainedTokenizerBase
) -> None:
    error = refused(jsonl(NEWS), plain, "artcle=prompt,highlights=completion")
    assert error.message == ("my.jsonl has no column 'artcle', only id, Article, highlights. Did you mean Article?")
    assert "--columns" in error.remedy
    error = refused(jsonl([{**row, "prompt": "x"} for row in NEWS]), plain, "article=prompt,highlights=completion")
    assert "has a column 'prompt' already" in error.message
    assert "--columns article=prompt,prompt=other" in error.remedy
    assert "--columns article=prompt,highlights=completion" in refused(jsonl(NEWS), plain).remedy


CHOSEN = [{"role": "user", "content": "Hi {}"}, {"role": "assistant", "content": "Yes"}]


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"prompt": "Hi {}", "chosen": "Yes", "rejected": "No"}, "chosen=completion"),
        ({"prompt": "Hi {}", "chosen": CHOSEN[1:], "rejected": CHOSEN[1:]}, "chosen=completion"),
        ({"system": "Be kind.", "question": "Hi {}", "chosen": "Yes", "rejected": "No"}, "chosen=answer"),
        ({"instruction": "Hi {}", "Chosen": "Yes", "Rejected": "No"}, "chosen=output"),
        ({"prompt": "Hi {}", "chosen": CHOSEN, "rejected": CHOSEN}, "chosen=messages"),
        ({"chosen": CHOSEN, "rejected": CHOSEN}, "chosen=messages"),
        ({"chosen": "Human: Hi {} Assistant: Yes", "rejected": "x"}, "chosen=text"),
    ],
)
def test_what_was_chosen_can_be_learned(
    row: dict[str, Any], columns: str, jsonl: Write, plain: PreTrainedTokenizerBase
) -> None:
    rows = [json.loads(json.dumps(row).replace("{}", str(i))) for i in range(20)]
    error = refused(jsonl(rows), plain)
    assert "is preference data (chosen, rejected)" in error.message
    assert error.remedy == f"--columns {columns} learns the chosen ones."
    dataset = prepared(jsonl(rows), plain, columns)
    assert "Yes" in dataset.train[0].answer or dataset.shape == "plain text"
    assert plain.decode(dataset.train[0].input_ids).count("Hi") == 1


@pytest.mark.parametrize(
    "text", ["article", "article=", "=prompt", "a=prompt,", ",", "a=prompt,a=completion", "a=prompt,A=x"]
)
def test_what_names_no_columns_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--columns"):
        parse_columns(text)


def test_columns_that_are_told_apart_by_case_alone_are_refused(jsonl: Write, plain: PreTrainedTokenizerBase) -> None:
    rows = [{"Article": f"Count to {i}", "article ": "x", "completion": f"{i}"} for i in range(12)]
    with pytest.raises(DataError, match="has columns 'Article' and 'article ', which are one"):
        prepared(jsonl(rows), plain, "article=prompt")
    with pytest.raises(UsageError, match="Two columns are to be read as prompt"):
        DataSpec(name="x", columns={"a": "Prompt", "b": "prompt"})


NAMES = st.text(st.characters(exclude_characters=",=", exclude_categories=["Z", "C"]), min_size=1, max_size=5)


@given(st.dictionaries(NAMES, NAMES, min_size=1).filter(lambda pairs: len(set(map(fold, pairs))) == len(pairs)))
def test_pairs_are_read_as_they_are_written(columns: dict[str, str]) -> None:
    assert parse_columns(", ".join(f"{theirs} = {ours}" for theirs, ours in columns.items())) == columns


def test_a_specification_keeps_what_columns_are_read_as(jsonl: Write) -> None:
    spec = api.specify("demo", jsonl(NEWS), trials=1, columns={"article": "prompt"})
    assert spec.data.columns == {"article": "prompt"}
    assert type(spec).model_validate_json(spec.model_dump_json()) == spec
    with pytest.raises(UsageError, match="Two columns are to be read as prompt"):
        api.specify("demo", jsonl(NEWS), trials=1, columns={"article": "prompt", "id": "prompt"})


def test_the_command_line_takes_them(jsonl: Write) -> None:
    arguments = ["data", jsonl(NEWS), "--columns", "article=prompt,highlights=completion", "--json"]
    result = CliRunner().invoke(app, arguments)
    assert json.loads(result.stdout.splitlines()[-1])["shape"] == "prompt/completion"
