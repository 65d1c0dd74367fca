"""What long work looks like: a live panel on a terminal, plain lines elsewhere."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from bandsearch.values.progress import Listener, Update

REFRESHES_PER_SECOND = 2
PLAIN_SECONDS = 10.0
RECENT_LINES = 4
BAR_WIDTH = 30
# Columns of a terminal that has room for bars beside the words.
BARS_FROM = 70


@contextmanager
def live_listener(console: Console) -> Iterator[tuple[Listener, Callable[[str], None]]]:
    """What hears, safe to call from any thread, and draws it; and what gives notice of something, safe to call where a
    signal interrupts. Leaves the terminal as it found it."""
    if not console.is_terminal:
        plain = PlainLines(lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True))
        yield plain.hear, give_notice
        return
    panel = LivePanel()
    live = Live(panel, console=console, refresh_per_second=REFRESHES_PER_SECOND, transient=True)
    live.start()
    # Announcements that carry no progress stay on the screen, above the panel.
    panel.say = lambda line: live.console.print(f"[dim]{escape(line)}[/dim]", highlight=False)
    try:
        yield panel.hear, panel.give_notice
        # A terminal that has gone takes nothing any more.
        with suppress(OSError):
            panel.close()
    finally:
        with suppress(OSError):
            live.stop()


def give_notice(words: str) -> None:
    """On standard error, where no panel stands."""
    Console(stderr=True).print(words, markup=False, highlight=False, soft_wrap=True)


class Known:
    """The latest of everything the updates said."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.stage = ""
        self.stage_began = self.heard_at = clock()
        self.done: float | None = None
        self.best_loss: float | None = None
        self.baseline_loss: float | None = None
        self.counts: dict[str, int] = {}
        self.spent: float | None = None
        self.limit: float | None = None
        self.devices: int | None = None

    def take(self, update: Update) -> None:
        now = self.clock()
        if update.stage != self.stage:
            self.stage, self.stage_began, self.done = update.stage, now, None
            self.counts = {}
        for name in ("done", "best_loss", "baseline_loss", "limit", "devices"):
            value = getattr(update, name)
            if value is not None:
                setattr(self, name, value)
        for name in ("running", "finished", "pruned", "failed"):
            count = getattr(update, name)
            if count is not None:
                self.counts[name] = count
        if update.spent is not None:
            self.spent, self.heard_at = update.spent, now

    @property
    def spent_now(self) -> float | None:
        """Device-seconds, counted on since the last update."""
        if self.spent is None or self.devices is None:
            return self.spent
        return self.spent + self.devices * (self.clock() - self.heard_at)

    @property
    def stage_seconds(self) -> float:
        return self.clock() - self.stage_began

    @property
    def seconds_left(self) -> float | None:
        """Wall clock: of the budget where there is one, else of the stage at the pace so far."""
        if self.limit is not None and self.spent_now is not None:
            return max(0.0, self.limit - self.spent_now) / (self.devices or 1)
        if self.done:
            return self.stage_seconds * (1 - self.done) / self.done
        return None

    @property
    def loss_words(self) -> str:
        if self.best_loss is None:
            return ""
        words = f"best {self.best_loss:.4f}"
        if self.baseline_loss is not None:
            words += f", baseline {self.baseline_loss:.4f} ({self.best_loss - self.baseline_loss:+.4f})"
        return words

    @property
    def count_words(self) -> str:
        return ", ".join(f"{count} {name}" for name, count in self.counts.items() if count)

    @property
    def budget_words(self) -> str:
        if self.spent_now is None:
            return ""
        spent = clock_text(self.spent_now)
        held = f" device time on {self.devices} devices" if (self.devices or 1) > 1 else ""
        return f"{spent} spent{held}" if self.limit is None else f"{spent} of {clock_text(self.limit)}{held}"


class PlainLines:
    """A line for every change of stage and every announcement; progress at most every ten seconds."""

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._write = write
        self._known = Known(clock)
        self._lock = threading.Lock()
        self._said_at = -PLAIN_SECONDS

    def hear(self, update: Update) -> None:
        with self._lock:
            now = self._known.clock()
            new_stage = update.stage != self._known.stage
            self._known.take(update)
            announcement = bool(update.message) and update.done is None
            if not new_stage and not announcement and now - self._said_at < PLAIN_SECONDS:
                return
            if not announcement:
                self._said_at = now
            self._write(self._line(update.message))

    def _line(self, message: str) -> str:
        known = self._known
        done = "" if known.done is None else f"{known.done:.0%}"
        parts = (message, done, known.loss_words, known.count_words, known.budget_words)
        return f"{known.stage}: {' · '.join(part for part in parts if part)}".removesuffix(": ")


class LivePanel:
    """The panel: stage, budget, best against baseline, trials, and the last few messages."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.say: Callable[[str], None] = lambda line: None
        self._known = Known(clock)
        self._lock = threading.Lock()
        self._recent: deque[str] = deque(maxlen=RECENT_LINES)
        self._notice = ""

    def hear(self, update: Update) -> None:
        lines = []
        with self._lock:
            if update.stage != self._known.stage:
                lines += self._ended()
                self._recent.clear()
            self._known.take(update)
            if update.message and update.done is None:
                lines.append(f"  {update.stage}: {update.message}")
            elif update.message:
                self._recent.append(update.message)
        # Outside the lock: printing draws the panel, which takes it.
        for line in lines:
            self.say(line)

    def give_notice(self, words: str) -> None:
        """Shown below from now on. Takes no lock: the thread that a signal interrupts may hold it."""
        self._notice = words

    def close(self) -> None:
        for line in self._ended():
            self.say(line)

    def _ended(self) -> list[str]:
        return [f"✓ {self._known.stage}, {clock_text(self._known.stage_seconds)}"] if self._known.stage else []

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        with self._lock:
            yield self._draw(options.max_width >= BARS_FROM)

    def _draw(self, with_bars: bool) -> RenderableType:
        known = self._known
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim", justify="right", no_wrap=True)
        if with_bars:
            table.add_column(width=BAR_WIDTH)
        table.add_column(overflow="fold")

        def add(name: str, bar: RenderableType, words: Text) -> None:
            table.add_row(name, *([bar] if with_bars else []), words)

        left = known.seconds_left
        if known.limit is not None and known.spent_now is not None:
            add("budget", _bar(known.spent_now / known.limit), Text(known.budget_words))
        elif known.budget_words:
            add("time", "", Text(known.budget_words))
        if known.stage:
            remaining = "" if left is None else f", at most {clock_text(left)} left"
            if known.limit is None and left is not None:
                remaining = f", about {clock_text(left)} left"
            words = f"{clock_text(known.stage_seconds)}{remaining}"
            add(f"[bold]{escape(known.stage)}[/bold]", _bar(known.done), Text(words))
        if known.loss_words:
            better = known.baseline_loss is not None and (known.best_loss or 0.0) < known.baseline_loss
            add("loss", "", Text(known.loss_words, style="green" if better else ""))
        if known.count_words:
            add("trials", "", Text(known.count_words))
        return Group(
            table,
            *(Text(f"  {line}", style="dim", no_wrap=True, overflow="ellipsis") for line in self._recent),
            *([Text(self._notice)] if self._notice else []),
        )


def _bar(share: float | None) -> RenderableType:
    if share is None:
        return Text("")
    return ProgressBar(total=1.0, completed=min(1.0, share), width=BAR_WIDTH)


def clock_text(seconds: float) -> str:
    """0:07, 4:32, 1:02:03."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
