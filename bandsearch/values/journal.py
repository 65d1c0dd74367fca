"""Append-only files that survive a kill and a full disk: whole lines, or nothing."""

import os
from pathlib import Path


def append_line(path: Path, line: str, *, durable: bool = True) -> None:
    """Append one line; a line that does not fit any more is taken back. `durable`: it is on disk when this returns."""
    with path.open("ab") as file:
        end = file.tell()
        try:
            file.write(line.encode() + b"\n")
            file.flush()
            if durable:
                os.fsync(file.fileno())
        except OSError:
            os.truncate(path, end)
            raise


def cut_torn_line(path: Path) -> None:
    """Remove what a kill left after the last newline, so that the next append starts a line of its own."""
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        os.truncate(path, content.rfind(b"\n") + 1)
