"""The prefix cache: what the frozen layers below a band put out, kept for every sequence."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from bandsearch.data.dataset import Dataset

# Of the disk that would be free without it, what the folder of the cache may take.
DISK_SHARE = 0.25
# An engine looks again at what the folder holds after putting so much there: other engines write to it too.
BYTES_UNSEEN = 2**26


def cache_key(dataset: Dataset, *facts: object) -> str:
    """A name for all that changes a kept state: the token ids of all splits, and `facts` (model, dtype, ...)."""
    digest = hashlib.sha256(repr(facts).encode())
    for split in (dataset.train, dataset.validation, dataset.test):
        digest.update(f"\0{len(split)}\0".encode())
        digest.update(split.lengths.data)
        digest.update(split.input_ids.data)
    return digest.hexdigest()[:24]


class Shelf:
    """The states of one split at one boundary: a sparse file of unpadded sequences, and a file of flags.

    A sequence counts as there once its flag is set, which is written after it; a writer that is killed leaves at worst
    a sequence without a flag. (Not so a machine that loses its power: that is why a key names the boot.) Engines of one
    machine may share a shelf: what they write to a place is the same.
    """

    def __init__(self, path: Path, lengths: Sequence[int], hidden_size: int, dtype: torch.dtype) -> None:
        """Raises OSError where the disk has no room for the flags."""
        self._item = hidden_size * dtype.itemsize
        self._offsets = [0]
        for length in lengths:
            self._offsets.append(self._offsets[-1] + length)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        flags_path = path.with_suffix(".flags")
        for file, size in ((path, self._offsets[-1] * self._item), (flags_path, len(lengths))):
            with file.open("ab"):
                os.truncate(file, size)
        self._states = torch.from_file(str(path), shared=True, size=self._offsets[-1] * hidden_size, dtype=dtype).view(
            -1, hidden_size
        )
        self._flags = torch.from_file(str(flags_path), shared=True, size=len(lengths), dtype=torch.uint8)
        self._flag_file = os.open(flags_path, os.O_RDWR)
        weakref.finalize(self, _close, self._file, self._flag_file)
        # On a tmpfs even reading a page that was never written takes room, and ends the process where there is none.
        os.posix_fallocate(self._flag_file, 0, max(1, len(lengths)))

    def __contains__(self, index: int) -> bool:
        return bool(self._flags[index])

    def get(self, index: int) -> Tensor | None:
        """(tokens, hidden size), or None where the sequence is not there."""
        return self._states[self._offsets[index] : self._offsets[index + 1]] if index in self else None

    def put(self, index: int, states: Tensor) -> None:
        """Raises OSError where the disk is full (writing through a memory map would end the process instead)."""
        raw = memoryview(states.detach().to("cpu", self._states.dtype).contiguous().view(torch.uint8).numpy()).cast("B")
        place = self._offsets[index] * self._item
        while raw:
            written = os.pwrite(self._file, raw, place)
            place, raw = place + written, raw[written:]
        os.pwrite(self._flag_file, b"\1", index)


class PrefixCache:
    """Shelves by split and boundary, in memory as far as the operating system has room for their pages.

    The folder takes at most `limit` bytes of disk, whoever shares it and however often they start; by default a quarter
    of what is free without it. What does not fit is not kept, and what lies there under another key, which nobody will
    read again, is deleted.
    """

    def __init__(
        self,
        dataset: Dataset,
        hidden_size: int,
        dtype: torch.dtype,
        directory: Path | None,
        key: str,
        limit: int | None = None,
    ) -> None:
        if directory is None:
            directory = Path(tempfile.mkdtemp(prefix="bandsearch-prefix-"))
            weakref.finalize(self, shutil.rmtree, directory, ignore_errors=True)
        self._directory = directory / key
        self._directory.mkdir(parents=True, exist_ok=True)
        for other in directory.iterdir():
            if other.is_dir() and other != self._directory:
                shutil.rmtree(other, ignore_errors=True)
        self._lengths: dict[str, list[int]] = {
            split: getattr(dataset, split).lengths.tolist() for split in ("train", "validation", "test")
        }
        self._hidden_size, self._dtype = hidden_size, dtype
        self._folder = directory
        held = self._held()
        self._limit = int(DISK_SHARE * (shutil.disk_usage(directory).free + held)) if limit is None else limit
        self._left, self._unseen = self._limit - held, 0
        self._shelves: dict[tuple[str, int], Shelf] = {}

    @property
    def keeps(self) -> bool:
        """Whether there is room for more."""
        return self._left > 0

    def boundary_below(self, split: str, index: int, boundary: int) -> int:
        """The highest boundary below `boundary` at which the sequence is kept; 0 is the embeddings.

        Never `boundary` itself: another engine may have put it there since it was looked for.
        """
        known = (at for name, at in self._shelves if name == split and at < boundary)
        return max((at for at in known if index in self._shelves[split, at]), default=0)

    def get(self, split: str, index: int, boundary: int) -> Tensor | None:
        """(tokens, hidden size) on the CPU, or None."""
        try:
            return self._shelf(split, boundary).get(index)
        except OSError as error:
            self._give_up(error)
            return None

    def put(self, split: str, index: int, boundary: int, states: Tensor) -> None:
        size = states.shape[0] * self._hidden_size * self._dtype.itemsize
        if size > self._left:
            self._left = 0
            return
        try:
            self._shelf(split, boundary).put(index, states)
        except OSError as error:
            self._give_up(error)
        else:
            self._left, self._unseen = self._left - size, self._unseen + size
            if self._unseen > BYTES_UNSEEN:
                self._left, self._unseen = self._limit - self._held(), 0

    def _held(self) -> int:
        """Bytes of disk that the folder takes; its files are sparse."""
        return sum(file.stat().st_blocks * 512 for file in self._folder.rglob("*") if file.is_file())

    def _give_up(self, error: OSError) -> None:
        if self._left:
            warnings.warn(f"The prefix cache keeps no more ({error.strerror}); training goes on without.", stacklevel=3)
        self._left = 0

    def _shelf(self, split: str, boundary: int) -> Shelf:
        key = (split, boundary)
        if key not in self._shelves:
            path = self._directory / f"{split}-{boundary}.states"
            self._shelves[key] = Shelf(path, self._lengths[split], self._hidden_size, self._dtype)
        return self._shelves[key]


def _close(*files: int) -> None:
    for file in files:
        os.close(file)
