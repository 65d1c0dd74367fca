"""What a build asks of the engines, and what it leaves out: engines that only answer take their place."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from planted import profile

from bandsearch.engine.failures import DivergedError
from bandsearch.values.candidate import Candidate
from bandsearch.values.fidelity import Fidelity
from bandsearch.values.trial import Point
from benchmarks.bandbench import build as building
from benchmarks.bandbench.design import Design
from benchmarks.bandbench.entry import Entry
from benchmarks.bandbench.rows import Rows
from benchmarks.bandbench.table import load_table

DESIGN = Design(
    ranks=(2, 4),
    targets=("mlp",),
    rate_factors=(0.4, 1.0, 2.5),
    full_rates=2,
    set_widths=(),
    survivors_per_width=1,
    survivors_beside=0,
)


class Answering:
    """A pool of one engine: low rates look better early, the best one ends best, and rates above 0.02 diverge."""

    size = 1

    def __init__(self) -> None:
        self.sessions: dict[str, tuple[Candidate, Fidelity]] = {}
        self.admitted = 0

    @classmethod
    def start(cls, setups: object) -> Answering:
        return cls()

    def pack(self, candidates: int) -> None: ...

    def stop(self) -> None:
        assert not self.sessions

    def submit(self, index: int, method: str, *args: Any) -> Any:
        return method, args

    def get(self, reference: Any) -> Any:
        method, args = reference
        if method == "admit":
            self.admitted += 1
            self.sessions[str(self.admitted)] = args
            return str(self.admitted)
        if method == "evict":
            return self.sessions.pop(args[0], None)
        candidate, fidelity = self.sessions[args[0]]
        if candidate.learning_rate > 0.02:
            del self.sessions[args[0]]
            raise DivergedError("The training loss is not a number.", "Lower the rate.")
        off = abs(math.log10(candidate.learning_rate / 0.01))
        loss = off if fidelity.steps == DESIGN.full_steps else 1 - off
        return Point(steps=args[1], loss=1 + loss + 0.01 * fidelity.seed, seconds=0.1 * args[1])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(building, "EnginePool", Answering)
    (tmp_path / "toss.profile.json").write_text(profile().model_dump_json())
    return tmp_path


def _wanted(entry: Entry) -> bool:
    return entry.bands in (((0, 12),), ((4, 8),))


def test_the_habit_tries_two_rates_in_full_and_the_others_take_the_better(folder: Path) -> None:
    assert building.build(folder, ["toss"], DESIGN, wanted=_wanted)
    rows = Rows(folder / "toss.jsonl").read()
    full = [row for row in rows if row.kind == "full" and row.seed == 0]
    rates = {rank: {row.rate for row in full if row.entry.rank == rank} for rank in DESIGN.ranks}
    assert rates == {4: {0.004, 0.01}, 2: {0.01}}
    assert DESIGN.habit == (4, "mlp")
    # The rate that diverged has a row without readings, and is not tried again.
    assert all(not row.readings for row in rows if row.rate == 0.025)
    # Full depth at the habit's rank tells what a seed does at every rate.
    others = {row.rate: set() for row in rows if row.seed > 0}
    for row in rows:
        if row.seed > 0:
            others[row.rate].add(row.entry)
    assert set(others) == {0.004, 0.01}
    assert others[0.004] == {Entry(bands=((0, 12),), rank=4, targets="mlp")}
    assert others[0.004] < others[0.01]
    table = load_table(folder, "toss")
    assert table is not None
    assert table.options[table.full_depth].candidate.learning_rate == 0.01


def test_a_build_broken_off_anywhere_ends_as_one_that_was_not(folder: Path) -> None:
    assert building.build(folder, ["toss"], DESIGN, wanted=_wanted)
    path = folder / "toss.jsonl"
    whole = path.read_bytes()
    once = {row.key: row for row in Rows(path).read()}
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        assert building.build(folder, ["toss"], DESIGN, wanted=_wanted)
        again = Rows(path).read()
        assert max(Counter(row.key for row in again).values()) == 1
        assert {row.key: row for row in again} == once


def test_without_time_nothing_is_trained_and_seeds_can_be_added(folder: Path) -> None:
    assert not building.build(folder, ["toss"], DESIGN, minutes=0, wanted=_wanted)
    one = DESIGN.model_copy(update={"seeds": 1})
    assert building.build(folder, ["toss"], one, wanted=_wanted)
    path = folder / "toss.jsonl"
    before = Rows(path).read()
    assert building.build(folder, ["toss"], DESIGN, wanted=_wanted)
    assert {row.seed for row in Rows(path).read()[len(before) :]} == {1, 2}


def test_who_is_best_at_the_lowest_rate_is_tried_at_lower_ones_and_the_others_follow(folder: Path) -> None:
    """The best rate, 0.01, lies a step below the grid."""
    design = DESIGN.model_copy(update={"rate_factors": (1.6, 1.9), "lower_factors": (0.625, 0.25, 0.1)})
    assert building.build(folder, ["toss"], design, wanted=_wanted)
    rows = Rows(folder / "toss.jsonl").read()
    full = [row for row in rows if row.kind == "full"]
    tried = {rank: {row.rate for row in full if row.seed == 0 and row.entry.rank == rank} for rank in design.ranks}
    assert tried == {4: {0.004, 0.01, 0.016, 0.019}, 2: {0.01, 0.019}}
    assert {row.rate for row in full if row.seed > 0 and row.entry.rank == 2} == {0.01}
    table = load_table(folder, "toss")
    assert table is not None
    assert table.rates == (0.004, 0.01, 0.016, 0.019)
    assert {table.options[index].candidate.learning_rate for index in table.own} == {0.01}
    # The others, at two rates each, have the better one at the edge.
    assert table.edge_share == 0.5
    assert building.build(folder, ["toss"], design, wanted=_wanted)
    assert len(Rows(folder / "toss.jsonl").read()) == len(rows)
