"""The ledger: an append-only record of the devices held and the time they were held for."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from bandsearch.values.errors import RunDirectoryError
from bandsearch.values.journal import append_line, cut_torn_line


class Ledger:
    """Charges wall time x devices to the stage that is open, in device-seconds.

    A line is appended every `tick` seconds and at every change of stage, each with the total so far. After
    `kill -9` the next session goes on from the last line, so at most one tick is lost and nothing is charged twice.
    Time between sessions is not charged: no device is held then. Displays and reports read the same numbers.
    """

    def __init__(self, path: Path, devices: int, limit_seconds: float | None, tick: float = 1.0) -> None:
        """`limit_seconds` is the budget in device-seconds, None for a run that is bounded by its number of trials."""
        self.devices = devices
        self.limit = limit_seconds
        self._path = path
        self._tick = tick
        self._lock = threading.RLock()
        if path.exists():
            cut_torn_line(path)
        self._by_stage = read_ledger(path) if path.exists() else {}
        self._stage: str | None = None
        self._since = 0.0
        self._stop = threading.Event()
        self._ticker: threading.Thread | None = None

    def __enter__(self) -> Ledger:
        self._ticker = threading.Thread(target=self._run, name="ledger", daemon=True)
        self._ticker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._ticker is not None:
            self._ticker.join()
        self._close()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Charge everything inside to `name`. Stages do not nest."""
        with self._lock:
            if self._stage is not None:
                raise ValueError(f"stage {name!r} opened inside {self._stage!r}")
            self._stage, self._since = name, time.monotonic()
        try:
            self._charge()
            yield
        finally:
            self._close()

    @property
    def spent(self) -> float:
        """Device-seconds charged so far, the open stage included."""
        return sum(self.by_stage.values())

    @property
    def left(self) -> float:
        """Device-seconds left; infinite without a limit; negative once overspent."""
        return float("inf") if self.limit is None else self.limit - self.spent

    @property
    def wall_left(self) -> float:
        """Wall-clock seconds until the budget is gone."""
        return self.left / self.devices

    @property
    def by_stage(self) -> dict[str, float]:
        """Device-seconds by stage, in the order the stages were first opened."""
        with self._lock:
            totals = dict(self._by_stage)
            if self._stage is not None:
                open_seconds = (time.monotonic() - self._since) * self.devices
                totals[self._stage] = totals.get(self._stage, 0.0) + open_seconds
            return totals

    def _run(self) -> None:
        while not self._stop.wait(self._tick):
            # A full disk shows at the next change of stage, in the main thread, where it can be reported.
            with suppress(OSError):
                self._charge()

    def _close(self) -> None:
        """The stage ends even where its last charge cannot be written; what it was charged stays counted."""
        try:
            self._charge()
        finally:
            with self._lock:
                self._stage = None

    def _charge(self) -> None:
        with self._lock:
            if self._stage is None:
                return
            now = time.monotonic()
            self._by_stage[self._stage] = self._by_stage.get(self._stage, 0.0) + (now - self._since) * self.devices
            self._since = now
            line = json.dumps(
                {
                    "time": round(time.time(), 3),
                    "stage": self._stage,
                    "stage_seconds": round(self._by_stage[self._stage], 3),
                    "spent": round(sum(self._by_stage.values()), 3),
                    "devices": self.devices,
                }
            )
            append_line(self._path, line)


def read_ledger(path: Path) -> dict[str, float]:
    """Device-seconds by stage. A torn last line, left by a kill or a full disk, is skipped."""
    totals: dict[str, float] = {}
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            totals[entry["stage"]] = float(entry["stage_seconds"])
        except (ValueError, KeyError, TypeError) as error:
            if number < len(lines):
                raise RunDirectoryError(
                    f"{path}:{number} is not a ledger line.", "Restore the file, or start a run in a new directory."
                ) from error
    return totals


def devices_held(path: Path) -> int:
    """How many devices a finished run was charged for at its end."""
    *_, last = path.read_text(encoding="utf-8").splitlines()
    return int(json.loads(last)["devices"])
