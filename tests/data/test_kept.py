"""A data set that is kept is the data set, and what is not it is never taken for it."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plain_examples import plain_values
from transformers import PreTrainedTokenizerBase

from bandsearch.data import dataset as preparing
from bandsearch.data.dataset import Counts, Dataset, Encoded, Examples, prepare
from bandsearch.data.kept import keep, open_dataset, recalled
from bandsearch.values.errors import DataError
from bandsearch.values.spec import DataSpec

Write = Callable[[Sequence[Any]], str]

WORDS = st.text(max_size=12)


@st.composite
def encoded(draw: st.DrawFn) -> Encoded:
    ids = draw(st.lists(st.integers(0, 2**31 - 1), min_size=2, max_size=9))
    marks = [False, *draw(st.lists(st.booleans(), min_size=len(ids) - 1, max_size=len(ids) - 1))]
    length, group = draw(st.integers(0, len(ids))), draw(st.integers(0, 2**60 - 1))
    return Encoded(np.array(ids, np.int32), np.array(marks), length, draw(WORDS), draw(WORDS), group)


SPLIT = st.lists(encoded(), max_size=5)


def content(dataset: Dataset) -> dict[str, Any]:
    """Everything a data set says, as values that can be compared."""
    said = {field.name: getattr(dataset, field.name) for field in dataclasses.fields(dataset)}
    return said | {name: list(map(plain_values, said[name])) for name in ("train", "validation", "test")}


@given(SPLIT, SPLIT, SPLIT, WORDS, st.lists(WORDS), st.lists(st.integers(0, 2**31)), st.integers(0, 2**40))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_opened_is_what_was_kept(
    tmp_path: Path,
    train: list[Encoded],
    validation: list[Encoded],
    test: list[Encoded],
    word: str,
    notes: list[str],
    stops: list[int],
    number: int,
) -> None:
    dataset = Dataset(
        name=word,
        shape=word,
        train=Examples.of(train),
        validation=Examples.of(validation),
        test=Examples.of(test),
        fingerprint=word,
        notes=tuple(notes),
        stop_ids=tuple(stops),
        template=word,
        max_length=number,
        counts=Counts(number, truncated=3),
        origin=f"{word}{number}",
    )
    assert content(dataset)["train"] == list(map(plain_values, train))
    path = tmp_path / "data.arrow"
    path.unlink(missing_ok=True)
    keep(dataset, path)
    assert content(open_dataset(path)) == content(dataset)
    again = recalled(path, dataset.origin)
    assert again is not None
    assert content(again) == content(dataset)
    assert recalled(path, "another") is None


@given(SPLIT, st.data())
def test_examples_are_a_sequence(given_ones: list[Encoded], data: st.DataObject) -> None:
    examples, plain = Examples.of(given_ones), list(map(plain_values, given_ones))
    assert len(examples) == len(plain)
    assert examples.lengths.tolist() == [len(ids) for ids, *_ in plain]
    assert examples.learned.tolist() == [sum(marks) for _, marks, *_ in plain]
    assert examples.input_ids.tolist() == [token for ids, *_ in plain for token in ids]
    part = data.draw(st.slices(len(plain)))
    assert list(map(plain_values, examples[part])) == plain[part]
    if plain:
        index = data.draw(st.integers(-len(plain), len(plain) - 1))
        assert plain_values(examples[index]) == plain[index]
    with pytest.raises(IndexError):
        examples[len(plain)]


ROWS = [{"prompt": f"What follows {n}?", "completion": f" {n + 1}"} for n in range(40)]


@pytest.fixture
def spec(jsonl: Write) -> DataSpec:
    return DataSpec(name=jsonl(ROWS), max_length=64)


@pytest.fixture
def path(spec: DataSpec, chat: PreTrainedTokenizerBase, tmp_path: Path) -> Path:
    """The file that keeps the data set of `spec`."""
    path = tmp_path / "data.arrow"
    keep(prepare(spec, chat, 0), path)
    return path


def encodings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows are encoded, from now on, a number for every time."""
    counts: list[int] = []
    encode = preparing.encode

    def counting(examples: Sequence[Any], *others: Any) -> Any:
        counts.append(len(examples))
        return encode(examples, *others)

    monkeypatch.setattr(preparing, "encode", counting)
    return counts


def test_what_is_kept_is_not_encoded_again(
    spec: DataSpec, path: Path, tokenizer_of: Callable[[str], PreTrainedTokenizerBase], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, counts = content(prepare(spec, tokenizer_of("llama"), 0)), encodings(monkeypatch)
    assert content(prepare(spec, tokenizer_of("llama"), 0, path)) == expected
    assert counts == []
    before = path.stat()
    keep(prepare(spec, tokenizer_of("llama"), 0), path)
    assert path.stat() == before


@pytest.mark.parametrize(
    "change", ["row", "order", "length", "sample", "template", "tokenizer", "added token", "longest of the tokenizer"]
)
def test_what_was_made_from_something_else_is_made_anew(
    change: str,
    spec: DataSpec,
    path: Path,
    jsonl: Write,
    tokenizer_of: Callable[[str], PreTrainedTokenizerBase],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer = tokenizer_of("gpt2" if change == "tokenizer" else "llama")
    if change == "row":
        jsonl([*ROWS[:-1], {**ROWS[-1], "completion": " 99"}])
    elif change == "order":
        # The same data set, with other places.
        jsonl(ROWS[::-1])
    elif change == "length":
        spec = spec.model_copy(update={"max_length": 32})
    elif change == "sample":
        spec = spec.model_copy(update={"max_examples": 20})
    elif change == "template":
        tokenizer.chat_template = str(tokenizer.chat_template).replace("\n", " ")
    elif change == "added token":
        tokenizer.add_tokens(["follows"])
    elif change == "longest of the tokenizer":
        tokenizer.model_max_length = 24
    expected, counts = content(prepare(spec, tokenizer, 0)), encodings(monkeypatch)
    assert content(prepare(spec, tokenizer, 0, path)) == expected
    assert len(counts) == 1
    keep(prepare(spec, tokenizer, 0, path), path)
    assert content(open_dataset(path)) == expected


def test_what_is_damaged_anywhere_is_made_anew(spec: DataSpec, path: Path, chat: PreTrainedTokenizerBase) -> None:
    whole = path.read_bytes()
    expected = content(prepare(spec, chat, 0))
    for place in range(0, len(whole), 61):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        found = recalled(path, expected["origin"])
        assert found is None or content(found) == expected
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        assert recalled(path, expected["origin"]) is None
    keep(prepare(spec, chat, 0, path), path)
    assert content(open_dataset(path)) == expected


@pytest.mark.parametrize("left", [None, b"", b"half of a"])
def test_what_is_no_data_set_is_refused_with_what_to_do(left: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "data.arrow"
    if left is not None:
        path.write_bytes(left)
    with pytest.raises(DataError, match=r"data\.arrow does not hold a prepared data set .*resume the run again\.$"):
        open_dataset(path)


def test_a_full_disk_leaves_what_was_there(
    spec: DataSpec, path: Path, chat: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = path.read_bytes()
    files = sorted(path.parent.iterdir())
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        keep(prepare(spec.model_copy(update={"max_length": 32}), chat, 0), path)
    assert path.read_bytes() == before
    assert sorted(path.parent.iterdir()) == files


def test_a_writer_that_is_killed_leaves_nothing_that_adds_up(spec: DataSpec, tmp_path: Path, path: Path) -> None:
    """Killed before the file has its name, twice, then let alone."""
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from bandsearch.data.kept import keep, open_dataset\n"
        "if sys.argv[3:]: os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "keep(open_dataset(Path(sys.argv[1])), Path(sys.argv[2]))\n"
    )
    folder = tmp_path / "run"
    folder.mkdir()
    begun = [sys.executable, "-c", script, str(path), str(folder / "data.arrow")]
    for _ in range(2):
        assert subprocess.run([*begun, "killed"]).returncode == -9
        assert len(list(folder.iterdir())) == 1
        assert not (folder / "data.arrow").exists()
    subprocess.run(begun, check=True)
    assert [each.name for each in folder.iterdir()] == ["data.arrow"]
    assert content(open_dataset(folder / "data.arrow")) == content(open_dataset(path))


def test_an_open_data_set_outlives_its_file(spec: DataSpec, path: Path, chat: PreTrainedTokenizerBase) -> None:
    """A run may change its mind about what is kept while engines read."""
    opened, expected = open_dataset(path), content(prepare(spec, chat, 0))
    Path(spec.name).write_text("".join(json.dumps(row) + "\n" for row in ROWS[:20]))
    keep(prepare(spec, chat, 0, path), path)
    assert content(opened) == expected
    path.unlink()
    assert content(opened) == expected
