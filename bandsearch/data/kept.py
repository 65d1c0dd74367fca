"""A prepared data set in a file: written once by the main process of a run, and mapped into memory by every engine."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import transformers
from transformers import PreTrainedTokenizerBase

from bandsearch import __version__
from bandsearch.data.examples import SCHEMA, Counts, Dataset, Examples
from bandsearch.values.errors import DataError

_SPLITS = ("train", "validation", "test")
_FACTS, _CHECKSUM = b"facts", b"checksum"


class _Content(NamedTuple):
    """`facts` is the JSON of all but the examples, which are in `tables`, one a split."""

    facts: bytes
    tables: tuple[pa.RecordBatch, ...]

    @property
    def checksum(self) -> bytes:
        total = zlib.crc32(self.facts)
        for table in self.tables:
            for column in table.columns:
                for buffer in filter(None, column.buffers()):
                    total = zlib.crc32(buffer, total)
        return str(total).encode()


def origin_of(tokenizer: PreTrainedTokenizerBase, settings: object, rows: Iterable[object]) -> str:
    """A name for all that a data set is made from: the tokenizer, `settings` and `rows` by what they print as, and the
    versions of what does it."""
    digest = hashlib.blake2b(repr((__version__, transformers.__version__, settings)).encode(), digest_size=16)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    words = backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items())
    special = sorted(tokenizer.added_tokens_decoder.items())
    names = sorted(tokenizer.special_tokens_map.items())
    about = (type(tokenizer).__name__, words, special, names, tokenizer.chat_template, tokenizer.model_max_length)
    digest.update(repr(about).encode())
    for row in rows:
        digest.update(repr(row).encode())
    return digest.hexdigest()


def keep(dataset: Dataset, path: Path) -> None:
    """Have `path` hold the data set, all or nothing: it is written unless it is there already. Raises OSError."""
    if recalled(path, dataset.origin) is not None:
        return
    facts = {field.name: getattr(dataset, field.name) for field in dataclasses.fields(Dataset)}
    splits = [facts.pop(split) for split in _SPLITS]
    facts["counts"] = dataclasses.asdict(dataset.counts)
    content = _Content(json.dumps(facts).encode(), tuple(split.table for split in splits))
    schema = SCHEMA.with_metadata({_FACTS: content.facts, _CHECKSUM: content.checksum})
    # Always of this name, so that what killed runs leave does not add up.
    fresh = path.with_name(f".{path.name}.partial")
    try:
        with fresh.open("wb") as file:
            with pa.ipc.new_file(file, schema) as writer:
                for table in content.tables:
                    writer.write_batch(table.replace_schema_metadata(schema.metadata))
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def recalled(path: Path, origin: str) -> Dataset | None:
    """What `keep` has written to `path`, if that was made from the same and is undamaged to the last byte."""
    try:
        dataset = _read(path, checked=True)
    except DataError:
        return None
    return dataset if dataset.origin == origin else None


def open_dataset(path: Path) -> Dataset:
    """What `keep` has written to `path`, in memory as far as it is looked at. Raises DataError."""
    return _read(path, checked=False)


def _read(path: Path, *, checked: bool) -> Dataset:
    try:
        with pa.memory_map(str(path)) as file, pa.ipc.open_file(file) as reader:
            metadata = reader.schema.metadata
            content = _Content(metadata[_FACTS], tuple(map(reader.get_batch, range(len(_SPLITS)))))
            for table in content.tables:
                # Looking at what lies beyond the end of a broken column would end the process.
                table.validate()
            if checked and content.checksum != metadata[_CHECKSUM]:
                raise ValueError("its checksum is another one")
        facts: dict[str, Any] = json.loads(content.facts)
        facts |= {"counts": Counts(**facts["counts"])} | {name: tuple(facts[name]) for name in ("notes", "stop_ids")}
        facts |= dict(zip(_SPLITS, map(Examples, content.tables), strict=True))
        return Dataset(**facts)
    except (OSError, pa.ArrowException, LookupError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} does not hold a prepared data set ({error}).", "Delete it, and start or resume the run again."
        ) from error
