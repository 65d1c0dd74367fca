"""Rows of data sets of the Hugging Face hub, or of a directory laid out like one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bandsearch.data.files import read_file
from bandsearch.data.reading import Row, Table, is_data_file, read_of, without_nulls
from bandsearch.values.errors import DataError
from bandsearch.values.spec import DataSpec

# Names of splits, as data sets and files call them.
_TRAIN = ("train", "training")
_VALIDATION = ("validation", "valid", "val", "dev", "eval")
_TEST = ("test",)

# What `datasets` leaves in a folder it saved itself.
_SAVED = ("dataset_dict.json", "state.json")


def read_hub(spec: DataSpec) -> Table:
    """The rows of a hub data set, with its own validation and test splits where it has them. Raises DataError.

    With `spec.split` only that split is read.
    """
    with _explained(spec):
        loaded = _load(spec)
    if spec.split:
        return Table(name=f"{spec.name} ({spec.split})", train=_rows(spec, spec.split, loaded))
    train = _name_of(loaded, _TRAIN) or (next(iter(loaded)) if len(loaded) == 1 else None)
    if train is None:
        raise DataError(
            f"{spec.name} has no split called train, only {', '.join(loaded)}.",
            "Name the one to use with --dataset-split.",
        )
    with _explained(spec):
        own = {split: _name_of(loaded, names) for split, names in (("validation", _VALIDATION), ("test", _TEST))}
        return Table(
            name=f"{spec.name} ({spec.config})" if spec.config else spec.name,
            train=_rows(spec, train, loaded[train]),
            **{split: _rows(spec, name, loaded[name]) for split, name in own.items() if name and name != train},
        )


def read_folder(folder: Path, limit: int | None = None) -> Table | None:
    """A folder with train, validation and test files, read by ourselves for the sake of line numbers; else None."""
    files = {path.name.split(".")[0].lower(): path for path in sorted(folder.iterdir()) if is_data_file(path)}
    train = _name_of(files, _TRAIN)
    if train is None:
        return None
    own = {split: _name_of(files, names) for split, names in (("validation", _VALIDATION), ("test", _TEST))}
    rows = {split: read_file(files[name], limit) for split, name in own.items() if name}
    return Table(name=folder.name, train=read_file(files[train], limit), **rows)


def _load(spec: DataSpec) -> Any:
    # Slow to import, and only needed here.
    import datasets

    folder = Path(spec.name).expanduser()
    if any((folder / name).is_file() for name in _SAVED):
        saved = datasets.load_from_disk(str(folder))
        if isinstance(saved, datasets.Dataset):
            return saved if spec.split else {"train": saved}
        return saved[spec.split] if spec.split else saved
    if folder.is_dir():
        return datasets.load_dataset(str(folder), spec.config, split=spec.split)
    name, _, revision = spec.name.partition("@")
    return datasets.load_dataset(name, spec.config, split=spec.split, revision=revision or None)


def _name_of(known: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in known), None)


def _rows(spec: DataSpec, split: str, rows: Any) -> tuple[Row, ...]:
    name = "/".join(filter(None, (spec.name, spec.config, split)))
    labels = {column: kind.names for column, kind in rows.features.items() if hasattr(kind, "names")}
    chosen = read_of(len(rows), spec.max_examples)
    # Before any of them becomes a Python object: a split may have hundreds of millions.
    if len(chosen) < len(rows):
        rows = rows.select(chosen)
    return tuple(
        Row(f"{name} row {index + 1}", row | {column: _label(row[column], names) for column, names in labels.items()})
        for index, row in zip(chosen, map(without_nulls, rows.to_list()), strict=True)
    )


def _label(value: Any, names: list[str]) -> Any:
    """A class by its name; -1 stands for an unknown one."""
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else None


@contextmanager
def _explained(spec: DataSpec) -> Iterator[None]:
    """Turn what datasets and the hub raise into a DataError, and keep their own warnings quiet."""
    import pyarrow
    from datasets.exceptions import DatasetNotFoundError, DatasetsError
    from huggingface_hub.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity(40)
    try:
        yield
    except ConnectionError as error:
        raise DataError(
            f"There is no file {spec.name}, and the hub cannot be reached to look for a data set of that name.",
            "Check the network and HF_HUB_OFFLINE, or give a data file.",
        ) from error
    except DatasetNotFoundError as error:
        if str(error).startswith("Revision"):
            name, _, revision = spec.name.partition("@")
            raise DataError(f"{name} has no revision {revision!r}.", "Check its branches and tags.") from error
        gated = "gated" in str(error)
        raise DataError(
            f"{spec.name} is neither a file nor a hub data set you can read.",
            "Ask for access on its page, then `hf auth login`." if gated else "Check the spelling, or `hf auth login`.",
        ) from error
    except (
        DatasetsError,
        OSError,
        ValueError,
        LookupError,
        RuntimeError,
        StopIteration,
        pyarrow.ArrowException,
    ) as error:
        raise DataError(f"{spec.name} cannot be loaded: {_sentence(error)}.", _remedy(error)) from error
    finally:
        logging.set_verbosity(verbosity)


def _sentence(error: BaseException) -> str:
    """What the innermost cause says: datasets wraps the line that matters."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, StopIteration):
        return "it holds no rows"
    text = " ".join(str(error).split()) or type(error).__name__
    return text.split(" Example of usage")[0][:300].rstrip(".")


def _remedy(error: BaseException) -> str:
    text = str(error)
    if "Config name" in text or "BuilderConfig" in text:
        return "Name one of them with --dataset-config."
    if "Unknown split" in text or isinstance(error, KeyError):
        return "Name one of its splits with --dataset-split."
    return "Check the data set's page, or download it and give one of its files."
