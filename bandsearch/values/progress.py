"""What long work says while it runs; the command line draws it, programs read it as JSON lines."""

from collections.abc import Callable

from bandsearch.values.value import Value


class Update(Value):
    """One step of progress. Fields that a stage does not know stay None and keep their last value on the display.

    `spent` and `limit` are device-seconds; while a stage is open, `spent` grows by `devices` every second.
    """

    stage: str
    message: str = ""
    done: float | None = None
    best_loss: float | None = None
    baseline_loss: float | None = None
    running: int | None = None
    finished: int | None = None
    pruned: int | None = None
    failed: int | None = None
    spent: float | None = None
    limit: float | None = None
    devices: int | None = None


Listener = Callable[[Update], None]
Stop = Callable[[], bool]


def silent(update: Update) -> None:
    """A listener for callers who do not watch."""


def never() -> bool:
    """For callers who do not stop what they began."""
    return False
