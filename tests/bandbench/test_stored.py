"""The tables that come along: that they are whole, and what the product's search does on them."""

from __future__ import annotations

import math
import statistics

import pytest
from scipy import stats

from bandsearch.demo.tasks import TASKS
from bandsearch.models.aliases import resolve
from bandsearch.models.loading import summarize
from bandsearch.search.proposer import Sampler
from bandsearch.values.candidate import Candidate
from bandsearch.values.evaluation import Choice
from bandsearch.values.profile import SensitivityProfile
from bandsearch.values.spec import ModelSpec
from benchmarks.bandbench.__main__ import FOLDER
from benchmarks.bandbench.build import MODEL
from benchmarks.bandbench.measured import load_measured
from benchmarks.bandbench.ours import bandsearch
from benchmarks.bandbench.probes import LADDER
from benchmarks.bandbench.replay import NULL, NULL_BUDGET, play
from benchmarks.bandbench.table import Table, load_table
from benchmarks.bandbench.world import World


@pytest.fixture(scope="module")
def tables() -> dict[str, Table]:
    found = {task: load_table(FOLDER, task) for task in TASKS}
    return {task: table for task, table in found.items() if table is not None}


def test_every_task_has_a_table_of_the_embedded_model(tables: dict[str, Table]) -> None:
    layout = summarize(resolve(ModelSpec(name=MODEL))).layout
    assert set(tables) == set(TASKS)
    assert [task for task, table in tables.items() if table.header.control] == ["toss"]
    for task, table in tables.items():
        assert table.header.task == task
        assert table.header.layout == layout
        assert table.noise > 0
        # Anew taken probes may lack the largest budgets, but no small ones.
        assert set(LADDER[:-1]) <= set(table.probes) <= set(LADDER)
        profiles: list[SensitivityProfile] = [table.profile, *table.probes.values()]
        for profile in profiles:
            assert profile.layer_count == len(profile.layer_scores) == layout.layer_count
            assert {each.module for each in profile.modules} <= {linear.name for linear in layout.linears}
            assert all(each.band.stop <= layout.layer_count for each in profile.proposals)
        measured = load_measured(FOLDER, task)
        assert measured is not None
        assert all(len(signal) == layout.layer_count for signal in measured.layers.values())


def test_false_wins_are_rare_on_the_stored_control(tables: dict[str, Table]) -> None:
    replays = 12
    choices = [play(tables["toss"], NULL, seed).steps[-1].choice for seed in range(replays)]
    assert choices.count(Choice.BEATS_BASELINE) <= stats.binom.ppf(0.99, replays, 0.05)


class Watched(World):
    """Keeps what is trained at the first rung."""

    def __init__(self, table: Table, seed: int) -> None:
        super().__init__(table, seed)
        self.tried: list[float] = []

    def loss(self, candidate: Candidate, column: int, seed: int) -> float:
        if column == 0:
            self.tried.append(self.table.regret(self.nearest(candidate)) / self.table.noise)
        return super().loss(candidate, column, seed)


def test_random_proposals_are_not_better_than_the_samplers(tables: dict[str, Table]) -> None:
    def regret(table: Table, seed: int, sampler: Sampler) -> tuple[float, float]:
        """Of what is handed over, and the median of what was tried."""
        world = Watched(table, seed)
        handed = bandsearch(world, NULL_BUDGET * table.exhaustive_seconds, sampler)
        assert handed is not None
        return table.regret(handed.option) / table.noise, statistics.median(world.tried)

    pairs = [
        [regret(tables[task], seed, sampler) for sampler in Sampler]
        for task in ("words", "symbol", "swap")
        for seed in range(3)
    ]
    lost = [mine - chance for (mine, _), (chance, _) in pairs]
    assert statistics.mean(lost) <= 3 * statistics.stdev(lost) / math.sqrt(len(lost))
    assert statistics.median(mine / chance for (_, mine), (_, chance) in pairs) < 0.8
