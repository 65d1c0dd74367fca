"""Ctrl-C is heard while a tokenizer is at work."""

from __future__ import annotations

import signal
import threading

import pytest

from bandsearch.data.heard import heard


def test_an_interrupt_does_not_wait_for_the_work() -> None:
    """Compiled code does not return to Python until it is done; a join in the main thread would not either."""
    over = threading.Event()
    threading.Timer(0.1, signal.raise_signal, [signal.SIGINT]).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            heard(over.wait)
        assert not over.is_set()
    finally:
        over.set()


def test_what_the_work_gives_and_raises_arrives() -> None:
    assert heard(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        heard(lambda: 1 / 0)
    assert not [thread for thread in threading.enumerate() if thread.name == "heard" and _lives(thread)]


def _lives(thread: threading.Thread) -> bool:
    thread.join(5)
    return thread.is_alive()
