"""Long calls into compiled code that leave Python free to hear Ctrl-C."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar("Result")
# How often the main thread looks up from its waiting, seconds.
LISTENING = 0.2


def heard(work: Callable[[], Result]) -> Result:
    """`work()`, in a thread that ends with the process: signals reach Python's main thread, and only between two steps
    of its own. A tokenizer takes minutes for one word of megabytes."""
    found: Future[Result] = Future()

    def run() -> None:
        try:
            found.set_result(work())
        except BaseException as error:
            found.set_exception(error)

    thread = threading.Thread(target=run, name="heard", daemon=True)
    thread.start()
    # The system may hand a signal to any thread; Python looks for it whenever the main one wakes.
    while thread.is_alive():
        thread.join(LISTENING)
    return found.result()
