"""What every long command sets up: a display or JSON lines, and the handling of Ctrl-C."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console

from bandsearch.cli.display import give_notice, live_listener
from bandsearch.cli.interrupt import stop_on_interrupt
from bandsearch.cli.output import Say, json_only, update_line
from bandsearch.values.errors import InterruptedRunError

if TYPE_CHECKING:
    from bandsearch.values.progress import Listener
    from bandsearch.values.value import Value

Said = TypeVar("Said")


@dataclass(frozen=True)
class Session:
    """`listen` and `stop` go to the stages; `write` writes a JSON line, and does nothing where people read."""

    as_json: bool
    console: Console
    listen: Listener
    stop: Callable[[], bool]
    write: Say

    def say(self, value: Value, **more: Any) -> None:
        """The command's result as a JSON line."""
        self.write({"event": "result", **more, **value.model_dump(mode="json")})


@contextmanager
def session(as_json: bool) -> Iterator[Session]:
    """Raises InterruptedRunError at the first Ctrl-C where no stage asks whether to stop."""
    with ExitStack() as stack:
        console = Console(stderr=as_json)
        if as_json:
            write = stack.enter_context(json_only())
            listen: Listener = lambda update: write(update_line(update))  # noqa: E731
            announce: Callable[[str], None] = give_notice
        else:
            write = _nothing
            listen, announce = stack.enter_context(live_listener(console))
        stop = stack.enter_context(stop_on_interrupt(_quietly(announce)))
        try:
            yield Session(as_json, console, _quietly(listen), stop, write)
        except KeyboardInterrupt:
            raise InterruptedRunError("Stopped; there was nothing to save.") from None


def _quietly(say: Callable[[Said], None]) -> Callable[[Said], None]:
    """`say` until it fails, then nothing: hours of work do not end because nobody reads their progress any more."""
    is_heard = True

    def say_if_heard(what: Said) -> None:
        nonlocal is_heard
        if is_heard:
            try:
                say(what)
            # Rich exits where its reader is gone.
            except (OSError, UnicodeError, SystemExit):
                is_heard = False

    return say_if_heard


def _nothing(value: dict[str, Any]) -> None:
    """People do not read JSON."""
