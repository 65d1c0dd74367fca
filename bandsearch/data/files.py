"""Rows of data files: JSON lines, JSON, CSV, TSV and parquet, read so that every mistake has a line."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bandsearch.data.problems import Problem, refuse, too_many
from bandsearch.data.reading import SUFFIXES, Row, is_data_file, read_of, without_nulls
from bandsearch.values.errors import DataError

# Bytes that tell how a text is encoded.
_SAMPLE = 4096
_GZIP = b"\x1f\x8b"
# A longer byte order mark may begin with a shorter one, so UTF-32 stands first.
_FOREIGN_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def read_file(path: Path, limit: int | None = None) -> tuple[Row, ...]:
    """The rows of a data file, at least one. Raises DataError with file and line.

    Where `limit` are wanted, of a long file only a sample is taken.
    Where only a few rows are broken they come with what is wrong with them.
    """
    if not is_data_file(path):
        raise DataError(f"{path.name} is not a kind of data file that is read.", f"Give {', '.join(SUFFIXES)}.")
    kind = Path(path.name.lower().removesuffix(".gz")).suffix
    content = _content(path)
    if kind == ".parquet":
        rows = _parquet(content, path.name, limit)
    else:
        text = _decoded(content, path)
        rows = _separated(text, path.name, kind, limit) if kind in (".csv", ".tsv") else _json(text, path.name, limit)
    if not rows:
        raise DataError(f"{path.name} holds no rows.", "Give a file with at least ten.")
    return rows


def read_paragraphs(path: Path) -> tuple[Row, ...]:
    """A plain text file as rows with a `text` each: what stands between blank lines. Raises DataError."""
    rows: list[Row] = []
    lines: list[str] = []
    for number, line in enumerate([*_decoded(_content(path), path).splitlines(), ""], start=1):
        if line.strip():
            lines.append(line)
        elif lines:
            rows.append(Row(f"{path.name}:{number - len(lines)}", {"text": "\n".join(lines)}))
            lines = []
    return tuple(rows)


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        if content.startswith(_GZIP):
            content = gzip.decompress(content)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path.name} is a damaged gzip file ({error}).", "Download or pack it again.") from error
    except OSError as error:
        raise DataError(f"{path.name} cannot be read: {error.strerror or error}.", "Check the file.") from error
    if not content.strip():
        raise DataError(f"{path.name} is empty.", "Give a file with at least ten rows.")
    return content


def _decoded(content: bytes, path: Path) -> str:
    for mark, encoding in _FOREIGN_MARKS.items():
        if content.startswith(mark):
            raise _encoding_error(path, 1, f"the file is {encoding}", encoding)
    body = content.removeprefix(codecs.BOM_UTF8)
    if b"\0" in body:
        zero = body.index(b"\0")
        line = body.count(b"\n", 0, zero) + 1
        # Of UTF-16 a good part of every second byte is zero, and hardly one between them; a torn write leaves a block.
        sample = body[:_SAMPLE]
        even, odd = sample[::2].count(0), sample[1::2].count(0)
        if 4 * min(even, odd) >= max(even, odd) or 20 * max(even, odd) < len(sample):
            clean = f"tr -d '\\0' < {path.name} > clean-{path.name}"
            raise DataError(f"{path.name}:{line}: byte {zero + 1} of the file is zero.", f"Take these out: {clean}")
        encoding = "UTF-16LE" if odd > even else "UTF-16BE"
        raise _encoding_error(path, line, f"byte {zero + 1} of the file is zero; it looks like UTF-16", encoding)
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        line = body.count(b"\n", 0, error.start) + 1
        position = error.start - body.rfind(b"\n", 0, error.start)
        # Between 0x80 and 0x9F Latin-1 has control characters, Windows-1252 dashes and quotes.
        name, encoding = ("Windows-1252", "CP1252") if re.search(rb"[\x80-\x9f]", body) else ("Latin-1", "LATIN1")
        found = f"byte {position} of the line (0x{body[error.start]:02x}) is not UTF-8; it looks like {name}"
        raise _encoding_error(path, line, found, encoding) from error


def _encoding_error(path: Path, line: int, found: str, encoding: str) -> DataError:
    return DataError(
        f"{path.name}:{line}: {found}.",
        f"Convert it: iconv -f {encoding} -t UTF-8 {path.name} > utf8-{path.name}",
    )


def _json(text: str, name: str, limit: int | None) -> tuple[Row, ...]:
    """JSON lines, or one array of objects; which of the two is seen from the text, whatever the file is called."""
    if text.lstrip().startswith("["):
        return _array(text, name, limit)
    # Not splitlines: that also breaks at characters such as U+2028, which JSON strings may hold.
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    rows = [_line(f"{name}:{number}", line) for number, line in (lines[index] for index in read_of(len(lines), limit))]
    if all(row.problem for row in rows) and isinstance(_whole(text), dict):
        raise DataError(f"{name} is one JSON object, not rows.", "Give one object per line, or an array of objects.")
    return _readable(name, rows, "Each line is one JSON object; mend or remove these lines.")


def _line(place: str, line: str) -> Row:
    try:
        return _object(place, json.loads(line))
    except (ValueError, RecursionError) as error:
        return Row(place, {}, f"not valid JSON ({_reason(error)})")


def _object(place: str, value: Any) -> Row:
    if isinstance(value, dict):
        return Row(place, value)
    return Row(place, {}, f"{_kind(value)}, not an object with fields")


def _readable(name: str, rows: Sequence[Row], remedy: str) -> tuple[Row, ...]:
    """The rows, unless many of them could not be read."""
    problems = [Problem(row.place, row.problem) for row in rows if row.problem]
    if too_many(problems, len(rows)):
        raise refuse(name, problems, len(rows), remedy)
    return tuple(rows)


def _array(text: str, name: str, limit: int | None) -> tuple[Row, ...]:
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{name}:{error.lineno}: not valid JSON ({_reason(error)}).", "Mend the file, or write one object per line."
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}: not valid JSON ({_reason(error)}).", "Mend the file.") from error
    rows = [_object(f"{name} row {index + 1}", values[index]) for index in read_of(len(values), limit)]
    return _readable(name, rows, "Every row is a JSON object.")


def _whole(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg.rstrip(':')} at column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error).split(";")[0]


def _kind(value: Any) -> str:
    kinds = {list: "a list", str: "a string", bool: "true or false", int: "a number", float: "a number"}
    return kinds.get(type(value), "null")


def _separated(text: str, name: str, kind: str, limit: int | None) -> tuple[Row, ...]:
    header = text.split("\n", 1)[0]
    separator = "\t" if kind == ".tsv" else max(",;\t", key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    # The largest cell csv accepts is a setting of the process; 128 KiB is less than some documents.
    csv.field_size_limit(2**31 - 1)
    try:
        cells = filter(None, reader)
        columns = next(cells, [])
        if len(set(columns)) < len(columns):
            raise DataError(f"{name}:1: two columns have the same name.", "Name every column once.")
        found = [(reader.line_num, values) for values in cells]
    except csv.Error as error:
        raise DataError(
            f"{name}:{reader.line_num}: not valid CSV ({error}).", "Check the quotes around here."
        ) from error
    rows: list[Row] = []
    for index in read_of(len(found), limit):
        line, values = found[index]
        if len(values) == len(columns):
            rows.append(Row(f"{name} row {index + 1}", dict(zip(columns, values, strict=True))))
        else:
            cut = f"{len(values)} cells, but the header has {len(columns)}"
            rows.append(Row(f"{name} row {index + 1} (line {line})", {}, cut))
    return _readable(name, rows, "Put quotes around cells that hold the separator.")


def _parquet(content: bytes, name: str, limit: int | None) -> tuple[Row, ...]:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(io.BytesIO(content))
    except (pyarrow.ArrowException, OSError) as error:
        reason = next(iter(str(error).splitlines()), "no reason given").rstrip(".")
        raise DataError(f"{name} is not a readable parquet file ({reason}).", "Write or download it again.") from error
    chosen = read_of(len(table), limit)
    values = (table if len(chosen) == len(table) else table.take(list(chosen))).to_pylist()
    places = (f"{name} row {index + 1}" for index in chosen)
    return tuple(Row(place, without_nulls(value)) for place, value in zip(places, values, strict=True))
