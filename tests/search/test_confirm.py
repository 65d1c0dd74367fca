from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from threading import Barrier
from typing import Any

import numpy as np
import pytest
from bench import planted_search
from surface import LAYERS, LAYOUT, MemoryRecords, PlantedPool, Surface, plan, profile

from bandsearch.data.dataset import Encoded
from bandsearch.engine.failures import OutOfMemoryError
from bandsearch.evaluate.retention import divergence_of
from bandsearch.search.confirm import confirm
from bandsearch.search.correlation import signals
from bandsearch.search.evidence import Aim
from bandsearch.search.finalists import pick_finalists
from bandsearch.search.search import searched
from bandsearch.values.candidate import Candidate, Role
from bandsearch.values.evaluation import Choice, Winner
from bandsearch.values.fidelity import Fidelity
from bandsearch.values.spec import Objective
from bandsearch.values.trial import TrialResult, TrialState


class Level(Surface):
    """A control where nothing matters but chance."""

    def end_loss(self, candidate: Candidate) -> float:
        return 0.3

    def loss(self, candidate: Candidate, steps: int, seed: int) -> float:
        return self.noisy(0.3, candidate, steps, seed)


def confirmed(
    pool: PlantedPool,
    results: list[TrialResult],
    records: MemoryRecords | None = None,
    wall_left: Any = lambda: float("inf"),
    stop: Any = lambda: False,
    objective: Objective = Objective.LOSS,
    retention: tuple[Encoded, ...] = (),
    **planned: Any,
) -> tuple[Winner, list[TrialResult]]:
    records = records or MemoryRecords()
    winner = confirm(
        pool,
        results=results,
        layout=LAYOUT,
        profile=profile(),
        plan=plan(**planned),
        seed=0,
        records=records,
        wall_left=wall_left,
        stop=stop,
        aim=Aim(objective),
        retention=retention,
    )
    return winner, records.results()


def test_a_planted_narrow_band_wins_although_short_proxies_prefer_wide_ones() -> None:
    surface = Surface()
    won = 0
    for seed in range(5):
        results = planted_search(surface, seed, 50)
        winner, _ = confirmed(PlantedPool(surface, size=2), results, confirm_seeds=3)
        favourite = min((r for r in results if r.points), key=lambda r: r.points[0].loss)
        assert len(favourite.candidate.layers) > 8
        won += winner.choice is Choice.BEATS_BASELINE and len(winner.candidate.layers) <= 8
    assert won >= 4


def test_once_finalists_have_been_trained_the_search_is_over() -> None:
    surface = Surface()
    results = planted_search(surface, 0, 12)
    records = MemoryRecords()
    for result in reversed(results):
        records.append(result)
    assert searched(records) == []
    confirmed(PlantedPool(surface, size=2), results, records)
    assert searched(records) == sorted(results, key=lambda result: result.number)


def test_on_the_control_no_win_is_declared_and_something_smaller_is_handed_over() -> None:
    choices, sizes = [], []
    for seed in range(8):
        results = planted_search(Surface(), seed, 30)
        baseline = pick_finalists(results, LAYERS, 4)[0]
        winner, _ = confirmed(PlantedPool(Level()), results, confirm_seeds=3)
        choices.append(winner.choice)
        sizes.append(winner.trainable_parameters / baseline.trainable_parameters)
    assert choices.count(Choice.BEATS_BASELINE) <= 1
    assert max(sizes) <= 1
    assert sum(size < 1 for size in sizes) >= 6


def test_every_finalist_has_two_seeds_and_those_that_are_hard_to_tell_apart_have_more() -> None:
    results = planted_search(Surface(), 0, 30)
    records, pool = MemoryRecords(), PlantedPool(Surface(), size=2)
    winner, readings = confirmed(pool, results, records, confirm_seeds=3)
    finalists = pick_finalists(results, LAYERS, 4)
    seeds = {r.candidate: [o.seed for o in readings if o.candidate == r.candidate] for r in readings}
    assert all(sorted(each) == list(range(1, len(each) + 1)) for each in seeds.values())
    assert {len(each) for each in seeds.values()} >= {2, 5}
    assert len(seeds[winner.candidate]) == len(seeds[winner.baseline]) == 5
    trained = {reading.candidate for reading in readings}
    assert trained >= {finalist.candidate for finalist in finalists}
    assert 2 * len(trained) < len(readings) <= 3 * len(trained)
    assert len(readings) == pool.trainings
    assert {r.stage for r in readings} == {"confirm"}
    assert all(r.points[-1].steps == 180 for r in readings)
    again, _ = confirmed(pool, results, records, confirm_seeds=3)
    assert again == winner
    assert pool.trainings == len(readings)
    # Full depth at its second rate did not get to the last rung.
    judged = {signal.predictor: signal.across for signal in signals(results, winner.finalists, profile(), (30, 90))}
    assert judged["loss after 90 steps"].pairs == len(finalists) - 1


def test_short_of_time_full_depth_is_tuned_and_compared_with_one_other() -> None:
    results = planted_search(Surface(), 0, 30)
    pool = PlantedPool(Surface())
    one = 180 * 1.15  # seconds, at one second a step
    # Time for five trainings: both rates of full depth, then the better one and one finalist on two seeds each.
    winner, readings = confirmed(
        pool, results, wall_left=lambda: 5.2 * one - one * pool.trainings, confirm_seeds=3, seconds_per_step=1.0
    )
    full_depth = [f.candidate for f in pick_finalists(results, LAYERS, 4)[:2]]
    trained = Counter(r.candidate for r in readings)
    assert sorted(trained.values()) == [1, 2, 2]
    assert winner.baseline in full_depth
    assert trained[winner.baseline] == 2
    assert set(full_depth) < set(trained)


def opened_full_depth() -> list[TrialResult]:
    """A search whose sampler has not tried full depth as everybody does it."""
    results = planted_search(Surface(), 0, 40)
    return [each for each in results if each.role is not Role.FULL_DEPTH or each.proposed_by == "baseline"]


def test_with_a_little_more_time_further_candidates_come_before_the_other_baselines() -> None:
    results = opened_full_depth()
    pool = PlantedPool(Surface())
    one = 180 * 1.15
    _, readings = confirmed(
        pool, results, wall_left=lambda: 11.2 * one - one * pool.trainings, confirm_seeds=3, seconds_per_step=1.0
    )
    trained = Counter(reading.candidate for reading in readings)
    roles = Counter(reading.role for reading in readings if trained[reading.candidate] > 1)
    assert len({r.candidate for r in readings if r.role is Role.SEARCHED}) >= 4
    assert set(roles) == {Role.FULL_DEPTH, Role.SEARCHED}


def test_trainings_of_another_length_are_not_compared() -> None:
    """A resumed run has been given more: half of its finalists were trained for fewer steps, when all losses were
    higher."""
    results = planted_search(Surface(), 0, 30)
    records, pool = MemoryRecords(), PlantedPool(Surface())
    confirmed(pool, results, records, stop=lambda: pool.trainings >= 4, confirm_steps=90)
    before = pool.trainings
    assert 0 < before == len(records.results())
    fresh_pool = PlantedPool(Surface())
    winner, readings = confirmed(pool, results, records, confirm_steps=180)
    alone, wanted = confirmed(fresh_pool, results, confirm_steps=180)
    assert winner == alone
    assert readings[before:] == wanted
    # What is done at one length stays so after a detour to another.
    again, _ = confirmed(pool, results, records, confirm_steps=180)
    assert again == winner
    assert pool.trainings == len(readings)


class Rising(Surface):
    """What is best after a few steps is too low a rate for a whole training."""

    def end_loss(self, candidate: Candidate) -> float:
        return 0.3 - 0.2 * math.log10(candidate.learning_rate / self.rate)


def test_full_depth_is_confirmed_at_a_higher_rate_too() -> None:
    results = opened_full_depth()
    winner, _ = confirmed(PlantedPool(Rising()), results, confirm_seeds=3)
    full_depth = [each for each in pick_finalists(results, LAYERS, 4) if each.role is Role.FULL_DEPTH]
    low, high = (each.candidate for each in full_depth)
    assert low.learning_rate < high.learning_rate
    assert winner.baseline == high


class KeepingPool(PlantedPool):
    """The fewer layers, the less is forgotten."""

    measured: int = 0

    def apply(self, index: int, work: Any, *args: Any) -> Any:
        assert work is divergence_of
        self.measured += 1
        candidate, fidelity, done = self.sessions[args[0]]
        assert done == fidelity.steps
        return len(candidate.layers) / LAYERS


def test_what_is_forgotten_decides_between_equals_where_that_is_asked() -> None:
    results = planted_search(Level(), 0, 40)
    pool, text = KeepingPool(Level()), Encoded(np.array([1, 2], np.int32), np.array([False, True]), 0, "", "here")
    winner, readings = confirmed(pool, results, objective=Objective.RETENTION, retention=(text,))
    assert pool.measured == len(readings) > 0
    assert all(reading.divergence == len(reading.candidate.layers) / LAYERS for reading in readings)
    assert winner.choice is Choice.CLOSEST_WITHIN_NOISE
    chosen = next(each for each in winner.finalists if each.candidate == winner.candidate)
    assert chosen.divergence == len(winner.candidate.layers) / LAYERS


def test_what_is_forgotten_is_told_of_every_finalist_and_otherwise_decides_nothing() -> None:
    results = planted_search(Level(), 0, 40)
    pool, text = KeepingPool(Level()), Encoded(np.array([1, 2], np.int32), np.array([False, True]), 0, "", "here")
    winner, readings = confirmed(pool, results, retention=(text,))
    assert pool.measured == len(readings) > 0
    assert all(each.divergence == len(each.candidate.layers) / LAYERS for each in winner.finalists)
    without, _ = confirmed(KeepingPool(Level()), results)
    assert all(each.divergence is None for each in without.finalists)
    unread = tuple(each.model_copy(update={"divergence": None}) for each in winner.finalists)
    assert winner.model_copy(update={"finalists": unread}) == without


class CrampedPool(KeepingPool):
    """Memory does for training, and not for an adapter that PEFT is to hold as well."""

    def apply(self, index: int, work: Any, *args: Any) -> Any:
        raise OutOfMemoryError("One more adapter does not fit.")


def test_an_adapter_without_room_to_be_read_by_peft_has_its_loss_all_the_same() -> None:
    results = planted_search(Level(), 0, 40)
    text = Encoded(np.array([1, 2], np.int32), np.array([False, True]), 0, "", "here")
    winner, readings = confirmed(CrampedPool(Level()), results, retention=(text,))
    assert {(reading.state, reading.divergence) for reading in readings} == {(TrialState.COMPLETE, None)}
    assert (winner, readings) == confirmed(KeepingPool(Level()), results)


def test_without_any_time_the_baseline_is_handed_over() -> None:
    results = planted_search(Surface(), 0, 30)
    winner, readings = confirmed(PlantedPool(Surface()), results, wall_left=lambda: 0.0)
    assert (winner.choice, readings) == (Choice.UNCOMPARED, [])
    assert winner.candidate == pick_finalists(results, LAYERS, 4)[0].candidate


def test_stop_ends_it_with_what_there_is() -> None:
    results = planted_search(Surface(), 0, 30)
    pool = PlantedPool(Surface())
    _, readings = confirmed(pool, results, stop=lambda: pool.trainings >= 3)
    assert len(readings) <= 3


def test_who_diverges_in_confirmation_is_replaced_and_not_chosen() -> None:
    results = planted_search(Surface(), 0, 40)
    finalists = pick_finalists(results, LAYERS, 4)
    rates = sorted(f.candidate.learning_rate for f in finalists)
    limit = rates[len(rates) // 2]
    winner, readings = confirmed(PlantedPool(Surface(diverges_above=limit)), results)
    assert any(r.state is TrialState.DIVERGED for r in readings)
    assert winner.candidate.learning_rate <= limit
    assert all(f.candidate.learning_rate <= limit for f in winner.finalists)
    assert winner.baseline.learning_rate <= limit


def test_full_depth_is_made_up_where_the_search_left_none() -> None:
    results = [r for r in planted_search(Surface(), 0, 30) if r.role is not Role.FULL_DEPTH]
    winner, _ = confirmed(PlantedPool(Surface()), results)
    assert len(winner.baseline.layers) == LAYERS
    nothing, readings = confirmed(PlantedPool(Surface()), [])
    assert nothing.choice is Choice.UNCOMPARED
    assert len(readings) == 3


def test_full_depth_that_lacks_memory_is_not_tried_at_a_lower_rate() -> None:
    results, records = planted_search(Surface(), 0, 30), MemoryRecords()
    scarce = PlantedPool(Surface(out_of_memory_above=LAYERS - 1))
    with pytest.raises(OutOfMemoryError, match=r"Full depth.* does not fit into memory\. Lower --max-length"):
        confirmed(scarce, results, records)
    tried = {result.candidate.learning_rate for result in results if result.role is Role.FULL_DEPTH}
    failed = [result for result in records.results() if result.role is Role.FULL_DEPTH]
    assert failed
    assert {result.candidate.learning_rate for result in failed} <= tried
    winner, _ = confirmed(PlantedPool(Surface()), results, records)
    assert winner.choice is not Choice.UNCOMPARED


@dataclass
class PatientPool(PlantedPool):
    """No training ends before eight have begun."""

    begun: list[str] = field(default_factory=list)
    eight: Barrier = field(default_factory=lambda: Barrier(8))

    def _admit(self, candidate: Candidate, fidelity: Fidelity) -> str:
        session = super()._admit(candidate, fidelity)
        self.begun.append(candidate.identity)
        self.eight.wait(timeout=60)
        return session


def test_side_by_side_nobody_is_begun_who_may_be_left_with_one_seed() -> None:
    """In a run on `symbol` eight trainings fitted at a time and the second round did not: three of five contenders had
    two seeds."""
    pool = PatientPool(Surface(), size=8)
    confirmed(
        pool,
        planted_search(Surface(), 0, 30),
        wall_left=lambda: 2.1 * 180 * 1.15,
        stop=lambda: len(pool.begun) == 8,
        confirm_seeds=3,
        seconds_per_step=1.0,
    )
    assert sorted(Counter(pool.begun).values()) == [2, 2, 2, 2]
