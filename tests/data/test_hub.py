"""Hub data sets go through `datasets.load_dataset`; here from directories laid out as on the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
from datasets.exceptions import DatasetNotFoundError
from pyarrow import parquet
from transformers import PreTrainedTokenizerBase

from bandsearch.data import reading
from bandsearch.data.dataset import prepare
from bandsearch.data.files import read_file
from bandsearch.data.reading import read
from bandsearch.values.errors import DataError
from bandsearch.values.spec import DataSpec


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def rows_of(split: str, count: int) -> list[dict[str, Any]]:
    return [{"question": f"{split} {i}?", "answer": f"It is {i}"} for i in range(count)]


def hub(folder: Path, **splits: int) -> Path:
    (folder / "data").mkdir(parents=True)
    for split, count in splits.items():
        table = pyarrow.Table.from_pylist(rows_of(split, count))
        parquet.write_table(table, folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def refusal(**spec: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        read(DataSpec(**spec))
    assert caught.value.remedy
    assert "\n" not in caught.value.message
    return caught.value


def test_own_splits_are_used(tmp_path: Path, plain: PreTrainedTokenizerBase) -> None:
    folder = hub(tmp_path / "gsm", train=40, validation=7, test=5)
    dataset = prepare(DataSpec(name=str(folder)), plain, 0)
    assert [len(part) for part in (dataset.train, dataset.validation, dataset.test)] == [40, 7, 5]
    assert dataset.test[0].place.startswith(f"{folder}/test row ")
    assert "validation and test as the data set brings them" in dataset.notes[-1]


def test_missing_splits_are_carved_from_training(tmp_path: Path, plain: PreTrainedTokenizerBase) -> None:
    dataset = prepare(DataSpec(name=str(hub(tmp_path / "gsm", train=40, test=5))), plain, 0)
    assert [len(part) for part in (dataset.train, dataset.validation, dataset.test)] == [36, 4, 5]


def test_one_split_alone(tmp_path: Path, plain: PreTrainedTokenizerBase) -> None:
    folder = str(hub(tmp_path / "gsm", train=40, test=20))
    dataset = prepare(DataSpec(name=folder, split="test"), plain, 0)
    assert [len(part) for part in (dataset.train, dataset.validation, dataset.test)] == [16, 2, 2]
    error = refusal(name=folder, split="trian")
    assert "Unknown split" in error.message
    assert "--dataset-split" in error.remedy


def test_configurations(tmp_path: Path) -> None:
    folder = hub(tmp_path / "gsm", main=12, socratic=15)
    (folder / "README.md").write_text(
        "---\nconfigs:\n"
        + "".join(f"- config_name: {name}\n  data_files: data/{name}-*\n" for name in ("main", "socratic"))
        + "---\n"
    )
    table = read(DataSpec(name=str(folder), config="socratic"))
    assert len(table.train) == 15
    assert table.train[0].place == f"{folder}/socratic/train row 1"
    error = refusal(name=str(folder))
    assert "'main', 'socratic'" in error.message
    assert "--dataset-config" in error.remedy
    assert "--dataset-config" in refusal(name=str(folder), config="mian").remedy


def test_a_data_set_saved_to_disk(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_list(rows_of("train", 12))
    rows.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": rows, "test": rows.select(range(3))}).save_to_disk(tmp_path / "two")
    assert len(read(DataSpec(name=str(tmp_path / "one"))).train) == 12
    assert len(read(DataSpec(name=str(tmp_path / "two"))).test) == 3
    assert len(read(DataSpec(name=str(tmp_path / "two"), split="test")).train) == 3
    assert "--dataset-split" in refusal(name=str(tmp_path / "two"), split="nope").remedy


def test_labels_are_read_by_their_names(tmp_path: Path) -> None:
    kinds = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])})
    rows = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, -1]}, features=kinds)
    rows.save_to_disk(tmp_path / "one")
    table = read(DataSpec(name=str(tmp_path / "one")))
    assert [row.values["label"] for row in table.train] == ["good", "bad", None]


def test_a_revision_stands_behind_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(name: str, config: str | None, *, split: str | None, revision: str | None) -> dict[str, datasets.Dataset]:
        asked.append((name, config, revision))
        return {"train": datasets.Dataset.from_list(rows_of("train", 12))}

    monkeypatch.setattr(datasets, "load_dataset", load)
    table = read(DataSpec(name="org/rows@v1.2", config="main"))
    read(DataSpec(name="org/rows"))
    assert asked == [("org/rows", "main", "v1.2"), ("org/rows", None, None)]
    assert table.train[0].place.startswith("org/rows@v1.2/main/train row ")


def test_a_revision_that_does_not_exist_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> None:
        raise DatasetNotFoundError("Revision 'v9' doesn't exist for dataset 'org/rows' on the Hub.")

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert "org/rows has no revision 'v9'" in refusal(name="org/rows@v9").message


def test_of_a_large_split_only_what_is_read_becomes_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "FEWEST_READ", 30)
    made: list[int] = []
    to_list = datasets.Dataset.to_list

    def counted(rows: datasets.Dataset) -> list[dict[str, Any]]:
        made.append(len(rows))
        return to_list(rows)

    monkeypatch.setattr(datasets.Dataset, "to_list", counted)
    folder = hub(tmp_path / "gsm", train=400, test=5)
    table = read(DataSpec(name=str(folder), max_examples=2))
    assert made == [len(table.train), len(table.test)] == [30, 5]
    assert all(row.values["question"] == f"train {int(row.place.split()[-1]) - 1}?" for row in table.train)


def test_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    error = refusal(name="openai/gsm8k", config="main")
    assert "the hub cannot be reached" in error.message
    assert "Check the network" in error.remedy


def test_what_is_no_data_set(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "cannot be loaded" in refusal(name=str(tmp_path / "empty")).message
    folder = tmp_path / "damaged"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "train-00000.parquet").write_bytes(b"PAR1 not really")
    assert "cannot be loaded" in refusal(name=str(folder)).message
    parts = hub(tmp_path / "parts", test=5, validation=5)
    assert "no split called train, only" in refusal(name=str(parts)).message
    assert "There is no data file" in refusal(name="neither a file nor an id").message


def calling(i: int) -> dict[str, Any]:
    """Rows whose calls have other arguments than each other, and other fields than what is said."""
    function = {"name": "f", "arguments": {f"a{i}": [None, {"b": None}]}}
    said = [
        {"role": "user", "content": f"Call {i}"},
        {"role": "assistant", "tool_calls": [{"type": "function", "function": function}]},
    ]
    tool = {"type": "function", "function": {"name": "f", "parameters": {"properties": {f"a{i}": {"type": "array"}}}}}
    return {"messages": said, "tools": [tool], "note": None}


@pytest.mark.parametrize("source", ["file", "folder"])
def test_what_arrow_fills_up_with_nulls_is_not_learned(source: str, tmp_path: Path) -> None:
    path = tmp_path / "data" / "train-00000-of-00001.parquet"
    path.parent.mkdir()
    parquet.write_table(pyarrow.Table.from_pylist([calling(i) for i in range(12)]), path)
    rows = read_file(path) if source == "file" else read(DataSpec(name=str(tmp_path), split="train")).train
    expected = [json.loads(json.dumps(calling(i)).replace('{"b": null}', "{}")) for i in range(12)]
    assert [dict(row.values) for row in rows] == expected
    (tmp_path / "my.jsonl").write_text(json.dumps(calling(0)) + "\n")
    assert dict(read_file(tmp_path / "my.jsonl")[0].values) == calling(0)
