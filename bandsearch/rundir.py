"""The run directory: plain files that are the whole record of a run.

    spec.yaml environment.json plan.json profile.json trials.jsonl study.db ledger.jsonl
    winner.json adapter/ evaluation.json report.html report.md events.jsonl scratch/ (and prior.json with --prior)

Every file but the four append-only ones is written beside its place and renamed into it, so a file that exists is
complete. A stage is done when its file exists; `scratch/` can be deleted once the run is complete.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO, TypeVar

import yaml
from pydantic import ValidationError

from bandsearch.values.errors import FullDiskError, FullRunDiskError, RunDirectoryError
from bandsearch.values.journal import append_line, cut_torn_line
from bandsearch.values.progress import Update
from bandsearch.values.spec import RunSpec
from bandsearch.values.trial import TrialResult
from bandsearch.values.value import Value

AnyValue = TypeVar("AnyValue", bound=Value)


class RunDirectory:
    """One run's files, held by one process at a time (an advisory lock that the kernel drops when the process dies)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spec_file = path / "spec.yaml"
        self.environment = path / "environment.json"
        self.plan = path / "plan.json"
        self.profile = path / "profile.json"
        self.prior = path / "prior.json"
        self.trials = path / "trials.jsonl"
        self.study = path / "study.db"
        self.ledger = path / "ledger.jsonl"
        self.events = path / "events.jsonl"
        self.winner = path / "winner.json"
        self.adapter = path / "adapter"
        self.evaluation = path / "evaluation.json"
        self.report = path / "report.html"
        self.scratch = path / "scratch"
        self.data = self.scratch / "data.arrow"
        self.prefix = self.scratch / "prefix"
        self.full = self.scratch / "full"
        self.is_new = False
        self._lock: IO[str] | None = None

    @classmethod
    def create(cls, path: Path, spec: RunSpec) -> RunDirectory:
        """Make the directory, or take up the run of the same spec that is in it already. Another spec is refused."""
        home = cls(path)
        try:
            str(path.absolute()).encode()
        except UnicodeEncodeError as error:
            # Safetensors opens no such file, which would show once all is trained.
            raise RunDirectoryError(
                f"The path {str(path.absolute())!a} is not UTF-8.",
                "Choose another --out, or set LANG to a UTF-8 locale such as C.UTF-8.",
            ) from error
        if not home.spec_file.exists():
            if path.exists() and (not path.is_dir() or not _is_begun(path)):
                raise RunDirectoryError(f"{path} exists and is not a bandsearch run.", "Choose another --out.")
            with home:
                # Whoever held the lock before may have begun the run meanwhile.
                home.is_new = not home.spec_file.exists()
                if home.is_new:
                    home._begin(spec)
        if not home.is_new:
            differences = _differences(home.read_spec(), spec)
            if differences:
                raise RunDirectoryError(
                    f"{path} holds a run with another spec ({', '.join(differences)}).",
                    "Choose another --out, or continue the old run with `bandsearch resume`.",
                )
        return home

    def _begin(self, spec: RunSpec) -> None:
        try:
            self.write_spec(spec, "Free some space, or choose another --out.")
        except (OSError, RunDirectoryError):
            shutil.rmtree(self.path, ignore_errors=True)
            raise

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        if not (path / "spec.yaml").exists():
            raise RunDirectoryError(
                f"{path} is not a bandsearch run: it has no spec.yaml.", "Give the run's directory."
            )
        return cls(path)

    def __enter__(self) -> RunDirectory:
        with disk_errors(self.path):
            self.scratch.mkdir(parents=True, exist_ok=True)
            self._lock = (self.scratch / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.close()
            raise RunDirectoryError(
                f"Another process is working in {self.path}.",
                "Wait for it, watch it with `bandsearch status`, or end it.",
            ) from error
        except OSError as error:
            self._lock.close()
            raise RunDirectoryError(
                f"{self.path} cannot be locked ({error.strerror}).", "Choose an --out on a disk of this machine."
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            self._lock.close()

    def discard(self) -> None:
        """Take the whole directory away. Refused while another process works in it."""
        with self:
            pass
        # A network disk keeps an open file under another name, in the way of its directory.
        shutil.rmtree(self.path, ignore_errors=True)

    def forget_winner(self) -> None:
        """Take away whom an earlier plan was to hand over, and the trainings of that."""
        self.winner.unlink(missing_ok=True)
        shutil.rmtree(self.full, ignore_errors=True)

    def tidy(self) -> None:
        """Take away the largest part of a run, which is of no use after it: prefix states and the data set."""
        shutil.rmtree(self.prefix, ignore_errors=True)
        self.data.unlink(missing_ok=True)

    def write_spec(self, spec: RunSpec, remedy: str | None = None) -> None:
        with disk_errors(self.path, remedy):
            write_atomically(self.spec_file, yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False))

    def read_spec(self) -> RunSpec:
        try:
            return RunSpec.model_validate(yaml.safe_load(self.spec_file.read_text(encoding="utf-8")))
        except (ValidationError, yaml.YAMLError, UnicodeDecodeError) as error:
            raise RunDirectoryError(
                f"{self.spec_file} cannot be read: {_first_line(error)}",
                "Restore it, or start a run in a new directory.",
            ) from error

    def read(self, path: Path, kind: type[AnyValue]) -> AnyValue | None:
        """The value stored at `path`, None where that stage has not finished."""
        if not path.exists():
            return None
        try:
            return kind.model_validate_json(path.read_text(encoding="utf-8"))
        except (ValidationError, UnicodeDecodeError) as error:
            raise RunDirectoryError(
                f"{path} is damaged: {_first_line(error)}",
                "Delete that file to let `bandsearch resume` do the stage again.",
            ) from error

    def write(self, path: Path, value: Value) -> None:
        with disk_errors(self.path):
            write_atomically(path, value.model_dump_json(indent=2) + "\n")


class Records:
    """`trials.jsonl`: one line for every finished training, flushed to disk before `append` returns."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, result: TrialResult) -> None:
        with disk_errors(self._path.parent):
            if self._path.exists():
                cut_torn_line(self._path)
            append_line(self._path, result.model_dump_json())

    def results(self) -> list[TrialResult]:
        if not self._path.exists():
            return []
        results = []
        # What follows the last newline is being written, or was when its writer was killed.
        *lines, _ = self._path.read_text(encoding="utf-8").split("\n")
        for number, line in enumerate(lines, start=1):
            try:
                results.append(TrialResult.model_validate_json(line))
            except ValidationError as error:
                raise RunDirectoryError(
                    f"{self._path}:{number} is not a trial record: {_first_line(error)}",
                    "Delete that line to let the trial run again.",
                ) from error
        return results


class Events:
    """`events.jsonl`: what a run says while it runs, with its time. No stage reads it, so it may end in a torn line,
    and a disk that fails here ends nothing. Thread-safe."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        with suppress(OSError):
            if path.exists():
                cut_torn_line(path)

    def append(self, update: Update) -> None:
        said = update.model_dump(mode="json", exclude_none=True)
        with self._lock, suppress(OSError):
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            append_line(self._path, json.dumps({"time": now, **said}, ensure_ascii=False), durable=False)


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file beside `path` that takes its place once it is written and flushed to disk.

    Readers, and whoever looks after a kill or a power cut, see the old content or the new, never a part.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_atomically(path: Path, text: str) -> None:
    """As `replacing`, by a text."""
    with replacing(path) as file:
        # A folder's name that is no UTF-8 holds what no text can.
        file.write(text.encode(errors="replace"))


@contextmanager
def disk_errors(path: Path, remedy: str | None = None) -> Iterator[None]:
    """Turn a failing disk into a sentence. `remedy`: what to do where it is full, by default for a run's directory."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _full(
                f"The disk that holds {path} is full.", remedy, f"Free some space, then `bandsearch resume {path}`."
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST):
            raise RunDirectoryError(f"Cannot write in {path}: {error.strerror}.", "Choose another --out.") from error
        raise


def require_disk(path: Path, needed_bytes: int, remedy: str | None = None) -> None:
    """Refuse to start what would fill the disk half way through. `remedy`: what to do then, by default for a run's
    directory."""
    existing = next(parent for parent in (path, *path.resolve().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        raise _full(
            f"{path} needs about {needed_bytes / 1e9:.4g} GB and its disk has {free / 1e9:.4g} GB free.",
            remedy,
            "Free some space, or put the run on another disk with --out.",
        )


def _full(message: str, remedy: str | None, for_a_run: str) -> FullDiskError:
    """Only a run goes on where it stopped."""
    return FullRunDiskError(message, for_a_run) if remedy is None else FullDiskError(message, remedy)


def _is_begun(path: Path) -> bool:
    """Whether nothing is there but what is made before `spec.yaml`: all that a kill may leave."""
    return all(
        entry.name.startswith(".spec.yaml.")
        or (entry.name == "scratch" and entry.is_dir() and {*os.listdir(entry)} <= {"lock"})
        for entry in path.iterdir()
    )


def _differences(old: RunSpec, new: RunSpec) -> list[str]:
    before, after = _flat(old.model_dump(mode="json")), _flat(new.model_dump(mode="json"))
    changed = [(key, before.get(key), after.get(key)) for key in before | after if before.get(key) != after.get(key)]
    # The text of a chat template has many lines.
    return [f"{key} differs" if "\n" in f"{old}{new}" else f"{key} {old!r} -> {new!r}" for key, old, new in changed]


def _flat(tree: object, prefix: str = "") -> dict[str, object]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {
        key: leaf
        for name, branch in tree.items()
        for key, leaf in _flat(branch, f"{prefix}.{name}".lstrip(".")).items()
    }


def _first_line(error: Exception) -> str:
    return " ".join(str(error).splitlines()[:3])
