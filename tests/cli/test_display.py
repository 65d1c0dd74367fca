"""The display: plain lines where nobody watches, a panel on a terminal, the same numbers in both."""

import errno
import io

import pytest
from rich.console import Console

from bandsearch.cli.display import LivePanel, PlainLines, clock_text, live_listener
from bandsearch.values.errors import InterruptedRunError
from bandsearch.values.progress import Update


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def search_update(finished: int, **more: object) -> Update:
    return Update.model_validate(
        {
            "stage": "search",
            "message": f"#{finished} done",
            "done": finished / 20,
            "finished": finished,
            "running": 2,
            "spent": 60.0,
            "limit": 600.0,
            "devices": 1,
        }
        | more
    )


def test_plain_lines_come_at_every_stage_and_announcement_but_progress_every_ten_seconds() -> None:
    lines: list[str] = []
    clock = Clock()
    plain = PlainLines(lines.append, clock)
    plain.hear(Update(stage="load", message="1 engine"))
    plain.hear(Update(stage="load", message="3 rows truncated"))
    for finished in range(20):
        clock.now += 2
        plain.hear(search_update(finished))
    plain.hear(Update(stage="confirm"))
    said = [line.split(":")[0] for line in lines]
    assert said == ["load", "load", "search", "search", "search", "search", "confirm"]
    assert lines[1] == "load: 3 rows truncated"
    assert lines[2] == "search: #0 done · 0% · 2 running · 1:00 of 10:00"
    # The counts belong to the stage that gave them.
    assert lines[-1] == "confirm: 1:00 of 10:00"


def test_losses_are_shown_against_the_baseline() -> None:
    lines: list[str] = []
    PlainLines(lines.append, Clock()).hear(search_update(3, best_loss=0.25, baseline_loss=0.3))
    assert "best 0.2500, baseline 0.3000 (-0.0500)" in lines[0]


def test_spent_time_counts_on_between_updates() -> None:
    clock = Clock()
    console = Console(width=100, file=io.StringIO(), force_terminal=False)
    panel = LivePanel(clock)
    panel.hear(search_update(4, spent=60.0, devices=2, limit=600.0))
    clock.now += 30
    console.print(panel)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "2:00 of 10:00" in shown
    assert "at most 4:00 left" in shown
    assert "#4 done" in shown


def test_without_a_budget_the_stage_says_how_long_it_will_take() -> None:
    clock = Clock()
    console = Console(width=100, file=io.StringIO())
    panel = LivePanel(clock)
    panel.hear(Update(stage="search", done=0.0))
    clock.now += 60
    panel.hear(Update(stage="search", done=0.25))
    console.print(panel)
    assert "about 3:00 left" in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_terminal_gets_a_panel_and_keeps_the_announcements() -> None:
    console = Console(width=100, file=io.StringIO(), force_terminal=True)
    with live_listener(console) as (listen, _):
        listen(Update(stage="load", message="2 rows [/dropped]"))
        listen(search_update(1))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "2 rows [/dropped]" in shown
    assert "✓ load" in shown
    assert "✓ search" in shown
    # The cursor that the panel hides comes back.
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")


class Terminal(io.StringIO):
    """One that may go away."""

    is_gone = False

    def write(self, text: str) -> int:
        if self.is_gone:
            raise OSError(errno.EIO, "Input/output error")
        return super().write(text)


def test_a_terminal_that_has_gone_does_not_hide_why_it_ended() -> None:
    terminal = Terminal()

    def stopped() -> None:
        with live_listener(Console(width=100, file=terminal, force_terminal=True)) as (listen, _):
            listen(search_update(1))
            terminal.is_gone = True
            raise InterruptedRunError("Stopped.")

    with pytest.raises(InterruptedRunError):
        stopped()


def test_a_notice_stands_below_the_panel_from_then_on() -> None:
    console = Console(width=100, file=io.StringIO(), force_terminal=True)
    with live_listener(console) as (listen, give_notice):
        listen(search_update(1))
        give_notice("Stopping after this step.")
        listen(Update(stage="confirm", message="begun"))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert shown.rindex("Stopping after") > shown.rindex("confirm")


@pytest.mark.parametrize(("width", "has_bars"), [(40, False), (80, True)])
def test_a_narrow_terminal_keeps_the_words_and_leaves_out_the_bars(width: int, has_bars: bool) -> None:
    console = Console(width=width, file=io.StringIO())
    panel = LivePanel(Clock())
    panel.hear(search_update(4, spent=60.0, devices=1, limit=600.0))
    console.print(panel)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert ("━" in shown) is has_bars
    assert "budget" in shown
    assert "1:00 of 10:00" in shown


def test_no_terminal_gets_no_control_characters() -> None:
    console = Console(width=40, file=io.StringIO())
    with live_listener(console) as (listen, _):
        listen(Update(stage="load", message="a line that is longer than the forty columns of this console"))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b" not in shown
    assert shown == "load: a line that is longer than the forty columns of this console\n"


def test_clock_text() -> None:
    assert [clock_text(seconds) for seconds in (7, 272, 3723, 59.6)] == ["0:07", "4:32", "1:02:03", "1:00"]
