"""Data files of every kind, and what is said about broken ones."""

from __future__ import annotations

import csv
import gzip
import json
import os
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from transformers import PreTrainedTokenizerBase

from bandsearch.data.dataset import prepare
from bandsearch.data.files import read_file
from bandsearch.data.reading import look_for, read
from bandsearch.values.errors import BandsearchError, DataError
from bandsearch.values.spec import DataSpec

ROWS = [{"question": f"Größe {i}?\u2028", "answer": f"“{i}”, ja\nund nein"} for i in range(20)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def refusal(path: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        read_file(path)
    assert caught.value.remedy
    return caught.value


def broken(tmp_path: Path, content: bytes, name: str = "my.jsonl") -> str:
    path = tmp_path / name
    path.write_bytes(content)
    return refusal(path).message


def write(path: Path, kind: str) -> None:
    if kind == "jsonl":
        path.write_bytes(LINES)
    elif kind == "json":
        path.write_text(json.dumps(ROWS, indent=1), encoding="utf-8")
    elif kind == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, ["question", "answer"], delimiter="\t" if kind == "tsv" else ",")
            table.writeheader()
            table.writerows(ROWS)


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "csv", "tsv"])
def test_the_same_rows_from_every_kind_of_file(kind: str, tmp_path: Path, plain: PreTrainedTokenizerBase) -> None:
    write(tmp_path / "reference.jsonl", "jsonl")
    write(tmp_path / f"my.{kind}", kind)
    rows = read_file(tmp_path / f"my.{kind}")
    assert [dict(row.values) for row in rows] == ROWS
    assert rows[16].place == ("my.jsonl:17" if kind == "jsonl" else f"my.{kind} row 17")
    first = prepare(DataSpec(name=str(tmp_path / "reference.jsonl")), plain, 0)
    second = prepare(DataSpec(name=str(tmp_path / f"my.{kind}")), plain, 0)
    assert first.fingerprint == second.fingerprint
    assert [e.input_ids.tolist() for e in first.train] == [e.input_ids.tolist() for e in second.train]


def test_gzip_byte_order_mark_semicolons_blank_lines_and_misnamed_files(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "a.jsonl.gz", "wb") as file:
        file.write(LINES)
    (tmp_path / "b.jsonl").write_bytes(b"\xef\xbb\xbf\r\n\r\n" + LINES.replace(b"\n", b"\r\n"))
    (tmp_path / "c.json").write_bytes(LINES)
    (tmp_path / "d.jsonl").write_text(json.dumps(ROWS))
    for name in ("a.jsonl.gz", "b.jsonl", "c.json", "d.jsonl"):
        assert [dict(row.values) for row in read_file(tmp_path / name)] == ROWS
    assert read_file(tmp_path / "b.jsonl")[0].place == "b.jsonl:3"
    (tmp_path / "e.csv").write_text('question;answer\n"a;b";c\n')
    assert dict(read_file(tmp_path / "e.csv")[0].values) == {"question": "a;b", "answer": "c"}


def test_messages_written_as_json_in_a_cell(tmp_path: Path, plain: PreTrainedTokenizerBase) -> None:
    with (tmp_path / "my.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["messages"])
        for i in range(10):
            said = [{"role": "user", "content": f"{i}"}, {"role": "assistant", "content": "yes"}]
            table.writerow([json.dumps(said)])
    assert prepare(DataSpec(name=str(tmp_path / "my.csv")), plain, 0).shape == "chat messages"


def test_a_broken_line_is_named_with_its_number(tmp_path: Path) -> None:
    lines = LINES.split(b"\n")
    lines[16] = b'{"question": "x" "answer": "y"}'
    lines[3], lines[4], lines[5] = b"[1]", b"null", b"1"
    text = broken(tmp_path, b"\n".join(lines))
    assert "4 of 20 rows" in text
    assert "my.jsonl:17: not valid JSON (Expecting ',' delimiter at column 18)" in text
    assert "my.jsonl:4: a list, not an object with fields" in text
    assert "my.jsonl:5: null, not an object" in text
    assert broken(tmp_path, b"{" * 100_000).startswith("my.jsonl:1: not valid JSON (")
    assert broken(tmp_path, b'{"a": ' * 100_000).startswith("my.jsonl:1: not valid JSON (")
    assert broken(tmp_path, b'{"a": ' + b"9" * 5000 + b"}").startswith("my.jsonl:1: not valid JSON (")


def test_a_few_broken_rows_are_left_out_and_named(tmp_path: Path, plain: PreTrainedTokenizerBase) -> None:
    lines = LINES.splitlines()
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([*lines, lines[0][:20]]))
    (tmp_path / "b.json").write_text(json.dumps([*ROWS, 7]))
    (tmp_path / "c.csv").write_text("question,answer\n" + "".join(f"{i},x\n" for i in range(20)) + "a,b,c\n")
    for name, problem in (
        ("a.jsonl", "a.jsonl:21: not valid JSON (Unterminated string starting at at column 14)"),
        ("b.json", "b.json row 21: a number, not an object with fields"),
        ("c.csv", "c.csv row 21 (line 22): 3 cells, but the header has 2"),
    ):
        dataset = prepare(DataSpec(name=str(tmp_path / name)), plain, 0)
        assert f"1 row that cannot be used is left out: {problem}." in dataset.notes
        assert sum(map(len, (dataset.train, dataset.validation, dataset.test))) == 20


@pytest.mark.parametrize("content", [b"", b" \n\n", b"\xef\xbb\xbf"])
def test_an_empty_file(content: bytes, tmp_path: Path) -> None:
    text = broken(tmp_path, content)
    assert text in ("my.jsonl is empty.", "my.jsonl holds no rows.")


def test_other_encodings_are_named_with_line_and_remedy(tmp_path: Path) -> None:
    path = tmp_path / "my.jsonl"
    path.write_bytes(b'{"a": "x"}\n{"a": "Gr\xf6\xdfe"}\n')
    error = refusal(path)
    assert error.message == "my.jsonl:2: byte 10 of the line (0xf6) is not UTF-8; it looks like Latin-1."
    assert error.remedy == "Convert it: iconv -f LATIN1 -t UTF-8 my.jsonl > utf8-my.jsonl"
    path.write_bytes(b'{"a": "Gr\xf6\xdfe \x96 \x93x\x94"}\n')
    assert refusal(path).message.endswith("it looks like Windows-1252.")
    assert "iconv -f CP1252 " in refusal(path).remedy
    path.write_bytes(LINES.decode().encode("utf-16"))
    error = refusal(path)
    assert error.message == "my.jsonl:1: the file is UTF-16."
    assert "iconv -f UTF-16 " in error.remedy
    path.write_bytes('{"a": "x"}\n'.encode("utf-16-le"))
    assert "iconv -f UTF-16LE " in refusal(path).remedy
    path.write_bytes(('{"text": "' + 20 * "数据" + '"}\n').encode("utf-16-be"))
    assert "iconv -f UTF-16BE " in refusal(path).remedy
    path.write_bytes('{"a": "x"}\n'.encode("utf-32"))
    assert refusal(path).message == "my.jsonl:1: the file is UTF-32."


@pytest.mark.parametrize("content", [LINES + bytes(300), LINES[:40] + b"\0" + LINES[40:], bytes(5000)])
def test_zeros_that_a_torn_write_has_left_are_no_encoding(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "my.jsonl").write_bytes(content)
    error = refusal(tmp_path / "my.jsonl")
    assert "of the file is zero." in error.message
    assert "tr -d" in error.remedy


def test_what_is_no_file_is_said_to_be_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(DataError, match=r"pipe\.jsonl is neither a file nor a folder\. Write what"):
        read(DataSpec(name=str(tmp_path / "pipe.jsonl")))
    (tmp_path / "link.jsonl").symlink_to("gone.jsonl")
    with pytest.raises(DataError, match=r"link\.jsonl is a link to gone\.jsonl, which is not there"):
        look_for(str(tmp_path / "link.jsonl"))


def test_broken_files_of_other_kinds(tmp_path: Path) -> None:
    assert broken(tmp_path, b'[{"a": 1},\n{"a": }]', "a.json").startswith("a.json:2: not valid JSON (")
    assert broken(tmp_path, b'[{"a": 1}, 2]', "a.json") == "a.json row 2: a number, not an object with fields."
    assert broken(tmp_path, b"[]", "a.json") == "a.json holds no rows."
    assert broken(tmp_path, b'{\n"a": [\n{"b": 1}]\n}', "a.json") == "a.json is one JSON object, not rows."
    assert broken(tmp_path, b"PAR1 not really", "a.parquet").startswith("a.parquet is not a readable parquet file (")
    assert broken(tmp_path, b"\x1f\x8bnot really", "a.jsonl.gz").startswith("a.jsonl.gz is a damaged gzip file")
    assert broken(tmp_path, b"a,b\n1,2\n1,2,3\n", "a.csv").startswith(
        "a.csv row 2 (line 3): 3 cells, but the header has 2"
    )
    assert broken(tmp_path, b"a,a\n1,2\n", "a.csv") == "a.csv:1: two columns have the same name."
    assert broken(tmp_path, b'a,b\n1,"2\n', "a.csv").startswith("a.csv:2: not valid CSV (")
    assert broken(tmp_path, b"a,b\n", "a.csv") == "a.csv holds no rows."
    assert broken(tmp_path, b"\xef\xbb\xbf", "a.csv") == "a.csv holds no rows."
    assert broken(tmp_path, b"hello", "a.txt") == "a.txt is not a kind of data file that is read."


def test_a_long_cell_is_no_mistake(tmp_path: Path) -> None:
    (tmp_path / "my.csv").write_text(f"text\n{'x' * 200_000}\n")
    assert len(read_file(tmp_path / "my.csv")[0].values["text"]) == 200_000


def test_a_missing_file_is_answered_with_the_closest(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(LINES)
    with pytest.raises(DataError, match=r"There is no data file .*trian\.jsonl\. Did you mean .*train\.jsonl\?"):
        read(DataSpec(name=str(tmp_path / "trian.jsonl")))
    with pytest.raises(DataError, match="There is no data file"):
        read(DataSpec(name="no/such/folder/my.csv"))
    with pytest.raises(DataError, match="no configurations or splits"):
        read(DataSpec(name=str(tmp_path / "train.jsonl"), split="train"))


@pytest.mark.parametrize("name", ["my.jsonl", "my.json", "my.csv", "my.parquet", "my.jsonl.gz"])
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(content=st.binary(max_size=60) | st.text(alphabet='{}[]":,a1\n\\u ', max_size=40).map(str.encode))
def test_any_bytes_are_rows_or_are_refused_in_words(name: str, content: bytes, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(content)
    refused = None
    try:
        rows = read_file(path)
    except DataError as error:
        rows, refused = (), error
    assert rows or (refused and refused.remedy)
    assert all(row.place.startswith(name) for row in rows)


def test_demo_tasks_are_one_more_source(plain: PreTrainedTokenizerBase) -> None:
    from bandsearch.demo.tasks import TASKS

    task = next(iter(TASKS))
    dataset = prepare(DataSpec(name=f"demo:{task}", max_examples=50), plain, 0)
    assert dataset.shape == "prompt/completion"
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (40, 5, 5)
    assert dataset.train[0].place.startswith(f"demo:{task} row ")
    with pytest.raises(BandsearchError, match=f"no demo task.*Did you mean demo:{task}"):
        read(DataSpec(name=f"demo:{task}x"))
