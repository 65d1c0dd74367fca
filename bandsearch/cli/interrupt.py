"""Ctrl-C once: finish the step and save. Twice, or where nothing has begun yet: stop now."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

INTERRUPTED = 130
NOTICE = "Stopping after this step; what is finished is saved. Press Ctrl-C again to stop now."


@contextmanager
def stop_on_interrupt(announce: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Yields `stop()`, which turns true at the first SIGINT, SIGTERM or SIGHUP; a second one ends the process at once.

    As long as nobody has called it there is no step to finish, and the first one raises KeyboardInterrupt. Batch
    systems send SIGTERM before they kill and a terminal that is closed SIGHUP, so these count as a Ctrl-C; under nohup
    the latter stays unheard.
    """
    asked, heeded = threading.Event(), threading.Event()
    # Not every system has terminals that say so.
    hang_up = getattr(signal, "SIGHUP", None)
    hung_up = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal hung_up
        if asked.is_set():
            # A terminal that goes away says so more than once, and some systems send SIGTERM along.
            if number != hang_up and not hung_up:
                end_now()
            hung_up = hung_up and number == hang_up
            return
        hung_up = number == hang_up
        asked.set()
        if not heeded.is_set():
            raise KeyboardInterrupt
        announce(NOTICE)

    def stop() -> bool:
        heeded.set()
        return asked.is_set()

    heard = [signal.SIGINT, signal.SIGTERM]
    if hang_up is not None and signal.getsignal(hang_up) not in (signal.SIG_IGN, None):
        heard.append(hang_up)
    before = {number: signal.signal(number, handle) for number in heard}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_now() -> None:
    """End this process and every process it started, without any clean-up but the terminal's."""
    if sys.stdout.isatty():
        # A live display hides the cursor.
        sys.stdout.write("\x1b[?25h\n")
        sys.stdout.flush()
    for child in descendants(os.getpid()):
        with suppress(ProcessLookupError, PermissionError):
            os.kill(child, signal.SIGKILL)
    os._exit(INTERRUPTED)


def descendants(root: int, processes: Path = Path("/proc")) -> list[int]:
    """Children of `root` and theirs, as Linux lists them; elsewhere none, and Ray's own reaper ends its processes."""
    children: dict[int, list[int]] = {}
    for entry in processes.glob("[0-9]*/stat"):
        with suppress(OSError, ValueError):
            # The name, in parentheses, may hold spaces; the parent follows the state after it.
            parent = int(entry.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.parent.name))
    found = list(children.get(root, ()))
    for process in found:
        found += children.get(process, ())
    return found
