"""Building tables: real trainings on the engines of this machine, one row per training, only what is missing."""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any

from bandsearch.data.dataset import prepare
from bandsearch.data.kept import keep
from bandsearch.demo.tasks import TASKS
from bandsearch.engine.devices import devices, engine_layout
from bandsearch.engine.failures import DivergedError
from bandsearch.engine.measure import measure_costs
from bandsearch.engine.pool import EnginePool
from bandsearch.engine.setup import EngineSetup
from bandsearch.models.aliases import resolve
from bandsearch.models.loading import summarize
from bandsearch.models.tokenizer import load_tokenizer
from bandsearch.probe.effort import ProbeSettings
from bandsearch.probe.probe import run_probe
from bandsearch.rundir import write_atomically
from bandsearch.values.candidate import Candidate
from bandsearch.values.fidelity import Fidelity
from bandsearch.values.profile import SensitivityProfile
from bandsearch.values.space import SearchSpace
from bandsearch.values.spec import DataSpec, ModelSpec
from bandsearch.values.trial import Point
from benchmarks.bandbench.design import Design
from benchmarks.bandbench.entry import Entry, best_rate
from benchmarks.bandbench.rows import Header, Reading, Row, Rows

MODEL = "demo"
TOLD_EVERY = 60.0
# Candidates per pass, and entries under way per engine: the rates of one share their passes, and while it goes on alone
# others join it.
PACKING, SLOTS = 4, 2


def build(
    folder: Path,
    tasks: Iterable[str],
    design: Design,
    minutes: float = math.inf,
    wanted: Callable[[Entry], bool] = lambda entry: True,
) -> bool:
    """Add to the tables in `folder` what they lack. False where `minutes` were over first; what is there stays.

    Only entries that are `wanted` are trained.
    """
    deadline = time.monotonic() + 60 * minutes
    for task in tasks:
        if time.monotonic() >= deadline or not _Building(folder, task, design, deadline, wanted).run():
            return False
    return True


@dataclass
class _Building:
    folder: Path
    task: str
    design: Design
    deadline: float
    wanted: Callable[[Entry], bool]

    def run(self) -> bool:
        """Whether the table is complete."""
        self.source = resolve(ModelSpec(name=MODEL))
        self.summary = summarize(self.source)
        self.rows = Rows(self.folder / f"{self.task}.jsonl")
        self.known = {row.key: row for row in self.rows.read()}
        self.lock, self.told = Lock(), time.monotonic()
        entries = [entry for entry in self.design.entries(self.summary.layout.layer_count) if self.wanted(entry)]
        header = self.rows.header
        if header is not None:
            self._begin(header.rates)
            if not (self._missing(entries) or self._lower(entries) or self._seeds_missing(entries)):
                return True
        with TemporaryDirectory(prefix="bandbench-") as cache:
            pool = EnginePool.start(self._setups(cache))
            try:
                self._begin(self._rates(pool))
                pool.pack(PACKING)
                slots = list(range(pool.size)) * SLOTS
                self._say(f"{len(entries)} entries on {pool.size} engine(s)")
                return self._train(pool, slots, entries)
            finally:
                pool.stop()

    def _train(self, pool: EnginePool, slots: list[int], entries: list[Entry]) -> bool:
        # The habit's entries are all there before another asks which rate was best on its layers.
        for is_habit in (True, False):
            missing = [entry for entry in self._missing(entries) if self.design.is_habit(entry) == is_habit]
            if not self._each(slots, missing, lambda engine, entry: self._first_seed(pool, engine, entry)):
                return False
            alike = [entry for entry in entries if self.design.is_habit(entry) == is_habit]
            while lower := self._lower(alike):
                if not self._each(slots, lower, lambda engine, arm: self._other(pool, engine, *arm)):
                    return False
        others = self._seeds_missing(entries)
        return self._each(slots, others, lambda engine, arm: self._other(pool, engine, *arm))

    def _missing(self, entries: list[Entry]) -> list[Entry]:
        trained = Counter((entry, kind) for entry, _, seed, kind in self.known if seed == 0)
        return [
            entry
            for entry in entries
            if trained[entry, "full"] < self.design.trained_in_full(entry) or trained[entry, "proxy"] < len(self.rates)
        ]

    def _lower(self, entries: list[Entry]) -> list[tuple[Entry, float, int]]:
        """Entry, rate and seed of the trainings that come next at lower rates than all are tried at."""
        found = []
        for entry in entries:
            rate = self.design.next_lower(entry, self._losses(entry), self.rates[0])
            habit = None if self.design.is_habit(entry) else self._best(self._at_habit(entry))
            if habit is not None and habit.rate < self.rates[0] and habit.rate not in self._losses(entry):
                rate = habit.rate
            if rate is not None:
                found.append((entry, rate, 0))
        return found

    def _losses(self, entry: Entry) -> dict[float, float]:
        """Of the full trainings at seed 0, by rate; infinite where one diverged."""
        found = ((rate, self.known.get((entry, rate, 0, "full"))) for rate in (*self.lower, *self.rates))
        return {rate: row.readings[-1][1] if row.readings else math.inf for rate, row in found if row is not None}

    def _best(self, entry: Entry) -> Row | None:
        """The full training at seed 0 at the entry's own rate."""
        whole = {rate: loss for rate, loss in self._losses(entry).items() if math.isfinite(loss)}
        return self.known[entry, best_rate(whole), 0, "full"] if whole else None

    def _at_habit(self, entry: Entry) -> Entry:
        rank, targets = self.design.habit
        return Entry(bands=entry.bands, rank=rank, targets=targets)

    def _seeds_missing(self, entries: list[Entry]) -> list[tuple[Entry, float, int]]:
        """Entry, rate and seed of the trainings that others than the first seed lack."""
        best = {entry: row for entry in entries if (row := self._best(entry)) is not None}
        losses = {entry: row.readings[-1][1] for entry, row in best.items()}
        layer_count = self.summary.layout.layer_count
        arms = [
            (entry, rate)
            for entry in self.design.survivors(losses, layer_count)
            for rate in (*self.lower, *self.rates)
            if rate == best[entry].rate
            or (self.design.at_all_rates(entry, layer_count) and self._whole_at(entry, rate))
        ]
        return [
            (entry, rate, seed)
            for entry, rate in arms
            for seed in range(1, self.design.seeds)
            if any((entry, rate, seed, kind) not in self.known for kind in ("proxy", "full"))
        ]

    def _whole_at(self, entry: Entry, rate: float) -> bool:
        """Whether it was trained in full at seed 0 and did not diverge."""
        row = self.known.get((entry, rate, 0, "full"))
        return row is not None and bool(row.readings)

    def _first_seed(self, pool: EnginePool, engine: int, entry: Entry) -> None:
        """The rate search to the first rung; the chosen rates go to the last rung and are trained in full."""
        readings = self._proxies(pool, engine, entry)
        chosen = self._chosen(entry, readings)
        fidelity, steps = self.design.full(0), self.design.full_steps
        whole = [rate for rate in chosen if len(readings[rate]) == len(self.design.rungs)]
        whole = [rate for rate in whole if (entry, rate, 0, "full") not in self.known]
        last = {rate: _call(pool, engine, "admit", self._candidate(entry, rate), fidelity) for rate in whole}
        advancing = {rate: pool.submit(engine, "advance", session, steps) for rate, session in last.items()}
        for rate in chosen:
            full = self._read(pool, [advancing[rate]]) if rate in advancing else []
            self._note(Row(entry=entry, rate=rate, seed=0, kind="full", readings=tuple(full)))
        for session in last.values():
            _call(pool, engine, "evict", session)

    def _proxies(self, pool: EnginePool, engine: int, entry: Entry) -> dict[float, list[Reading]]:
        known = {rate: self.known.get((entry, rate, 0, "proxy")) for rate in self.rates}
        if all(known.values()):
            return {rate: list(row.readings) for rate, row in known.items() if row is not None}
        fidelity = self.design.proxy(0)
        sessions: dict[float, str] = {}
        readings: dict[float, list[Reading]] = {}
        for rate in self.rates:
            sessions[rate] = _call(pool, engine, "admit", self._candidate(entry, rate), fidelity)
        # Asked for together, they share every pass.
        first = {rate: pool.submit(engine, "advance", sessions[rate], self.design.rungs[0]) for rate in self.rates}
        for rate, reference in first.items():
            readings[rate] = self._read(pool, [reference])
        chosen = self._chosen(entry, readings)
        # A training that diverged is gone from its engine.
        for rate in self.rates:
            if rate in chosen and readings[rate]:
                readings[rate] += self._advance(pool, engine, sessions[rate], self.design.rungs[1:])
            _call(pool, engine, "evict", sessions[rate])
        for rate in self.rates:
            self._note(Row(entry=entry, rate=rate, seed=0, kind="proxy", readings=tuple(readings[rate])))
        return readings

    def _chosen(self, entry: Entry, readings: dict[float, list[Reading]]) -> list[float]:
        """The rates to train in full: the best at the first rung, or what was best in full on the same layers."""
        habit = self._best(self._at_habit(entry))
        count = self.design.trained_in_full(entry)
        if habit is not None and habit.entry != entry and readings.get(habit.rate):
            return [habit.rate]
        return sorted(self.rates, key=lambda rate: readings[rate][0][1] if readings[rate] else math.inf)[:count]

    def _other(self, pool: EnginePool, engine: int, entry: Entry, rate: float, seed: int) -> None:
        if (entry, rate, seed, "proxy") not in self.known:
            proxy = self._whole(pool, engine, entry, rate, self.design.proxy(seed), self.design.rungs)
            self._note(Row(entry=entry, rate=rate, seed=seed, kind="proxy", readings=proxy))
        if (entry, rate, seed, "full") not in self.known:
            full = self._whole(pool, engine, entry, rate, self.design.full(seed), (self.design.full_steps,))
            self._note(Row(entry=entry, rate=rate, seed=seed, kind="full", readings=full))

    def _whole(
        self, pool: EnginePool, engine: int, entry: Entry, rate: float, fidelity: Fidelity, stages: tuple[int, ...]
    ) -> tuple[Reading, ...]:
        session = _call(pool, engine, "admit", self._candidate(entry, rate), fidelity)
        readings = self._advance(pool, engine, session, stages)
        _call(pool, engine, "evict", session)
        return tuple(readings)

    def _advance(self, pool: EnginePool, engine: int, session: str, stages: tuple[int, ...]) -> list[Reading]:
        return self._read(pool, (pool.submit(engine, "advance", session, steps) for steps in stages))

    def _read(self, pool: EnginePool, references: Iterable[Any]) -> list[Reading]:
        """Until the training diverges."""
        readings: list[Reading] = []
        try:
            for reference in references:
                point: Point = pool.get(reference)
                readings.append((point.steps, point.loss, point.seconds))
        except DivergedError:
            pass
        return readings

    def _each(self, slots: list[int], work: list[Any], train: Callable[[int, Any], None]) -> bool:
        """`train(engine, item)` for all of `work`, in its order, until the time is over; whether all was done."""
        waiting = iter(work)

        def serve(engine: int) -> bool:
            while time.monotonic() < self.deadline:
                with self.lock:
                    item = next(waiting, None)
                if item is None:
                    return True
                train(engine, item)
            with self.lock:
                return next(waiting, None) is None

        with ThreadPoolExecutor(len(slots)) as threads:
            trainers = [threads.submit(serve, engine) for engine in slots]
            done = [trainer.result() for trainer in trainers]
        return all(done)

    def _note(self, row: Row) -> None:
        with self.lock:
            if row.key in self.known:
                return
            self.rows.append(row)
            self.known[row.key] = row
            if time.monotonic() - self.told > TOLD_EVERY:
                self.told = time.monotonic()
                self._say(f"{len(self.known)} trainings")

    def _begin(self, rates: tuple[float, ...]) -> None:
        self.rates, self.lower = rates, self.design.rates_below(rates[0])
        header = Header(
            task=self.task,
            control=TASKS[self.task].control,
            layout=self.summary.layout,
            rungs=self.design.rungs,
            full_steps=self.design.full_steps,
            alpha=self.design.alpha,
            batch_size=self.design.batch_size,
            validation_examples=self.design.validation_examples,
            rates=rates,
        )
        self.rows.begin(header)

    def _rates(self, pool: EnginePool) -> tuple[float, ...]:
        """From the stored profile of the task; without one, the probe of a run is done and stored."""
        path = self.folder / f"{self.task}.profile.json"
        if not path.exists():
            self._say("probe")
            costs = pool.apply(0, measure_costs, self.design.batch_size, self.design.validation_examples)
            space = SearchSpace(name=self.task, alpha=self.design.alpha)
            settings = ProbeSettings(seed=0, batch_size=self.design.batch_size, space=space, costs=costs)
            profile = pool.apply(0, run_probe, settings)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, profile.model_dump_json())
        return self.design.rates(SensitivityProfile.model_validate_json(path.read_text()).rate_range.best)

    def _setups(self, cache: str) -> list[EngineSetup]:
        spec, data = ModelSpec(name=MODEL), Path(cache) / "data.arrow"
        keep(prepare(DataSpec(name=f"demo:{self.task}"), load_tokenizer(self.source), 0), data)
        return [
            EngineSetup(
                source=self.source,
                data=str(data),
                dtype=spec.dtype,
                device=placement.device,
                threads=placement.threads,
                cache_directory=cache,
            )
            for placement in engine_layout(devices(), self.summary.parameters)
        ]

    def _candidate(self, entry: Entry, rate: float) -> Candidate:
        return entry.candidate(rate, self.design.alpha)

    def _say(self, message: str) -> None:
        print(f"{self.task}: {message}", file=sys.stderr, flush=True)


def _call(pool: EnginePool, index: int, method: str, *arguments: Any) -> Any:
    return pool.get(pool.submit(index, method, *arguments))
