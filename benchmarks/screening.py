"""B, search level: candidates screened per device-hour by probe and search, against training each to the end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Sequence
from statistics import mean

import numpy as np

from bandsearch.engine.measure import measure_costs
from bandsearch.engine.scoring import ExampleLoss
from bandsearch.probe.probe import ProbeSettings, run_probe
from bandsearch.search.search import run_search
from bandsearch.values.candidate import Candidate
from bandsearch.values.evaluation import Interval
from bandsearch.values.plan import Costs, Plan
from bandsearch.values.profile import SensitivityProfile
from bandsearch.values.space import SearchSpace
from bandsearch.values.statistics import paired_bootstrap
from bandsearch.values.trial import TrialResult
from bandsearch.values.value import Value
from benchmarks.job import Trained
from benchmarks.ours import Started, call, in_slots, started, token_mean
from benchmarks.processes import Timing
from benchmarks.records import MemoryRecords
from benchmarks.spread import Spread
from benchmarks.workload import Workload

SPACE = SearchSpace(name="default")


class Screening(Value):
    """Seconds of `ours` run from the first process to the end of the search, probe included; retraining is not in them.

    Test losses are means over the seeds of the retraining. `difference` is ours less naive's, with what comes of the
    seeds and of the test questions in its interval.
    """

    naive: Spread
    trials: int
    states: dict[str, int]
    mean_steps: float
    ours_seconds: float
    probe_seconds: float
    naive_seconds: float
    winner: str
    naive_winner: str
    winner_test_loss: float
    naive_winner_test_loss: float
    base_test_loss: float
    difference: Interval

    @property
    def is_no_worse(self) -> bool:
        """Whether the retrained winner is not behind naive's beyond noise."""
        return self.difference.low <= 0


def screen(workload: Workload, naive: Timing, exhaustive: list[Trained]) -> Screening:
    """`naive` is the measured arm of A; `exhaustive` are the frozen candidates trained to the last rung.

    Naive takes the frozen candidate with the lowest last loss; ours the best of the search. Both are trained again
    by the same engines at full length, on several seeds, and judged on the test split, on which nothing was chosen.
    """
    began = time.perf_counter()
    with started(workload) as at:
        scale = workload.scale
        costs = at.pool.apply(0, measure_costs, scale.batch_size, scale.validation_examples)
        profile = _probe(at, workload, costs)
        ends = math.inf if scale.search_minutes is None else began + 60 * scale.search_minutes
        results = _search(at, workload, costs, profile, lambda: ends - time.perf_counter())
        seconds = time.perf_counter() - began
        winner = best_of(results)
        rival = min(exhaustive, key=lambda trial: trial.validation_losses[-1]).candidate
        ours, theirs = _retrained(at, workload, winner, rival)
        base = token_mean(call(at.pool, 0, "losses", "test", None, None))
    tried = [result.candidate for result in results]
    naive_seconds = naive.seconds(workload, tried, starts=len(tried))
    states = [result.state.value for result in results]
    return Screening(
        naive=naive_seconds.divided(seconds),
        trials=len(results),
        states={state: states.count(state) for state in sorted(set(states))},
        mean_steps=sum(result.steps for result in results) / len(results),
        ours_seconds=seconds,
        probe_seconds=profile.seconds,
        naive_seconds=naive_seconds.median,
        winner=str(winner),
        naive_winner=str(rival),
        winner_test_loss=mean(map(token_mean, ours)),
        naive_winner_test_loss=mean(map(token_mean, theirs)),
        base_test_loss=base,
        difference=_difference(ours, theirs, [example.group for example in workload.dataset.test]),
    )


def best_of(results: list[TrialResult]) -> Candidate:
    """The lowest loss among those that got furthest."""
    furthest = max(result.steps for result in results)
    return min(
        (result for result in results if result.steps == furthest), key=lambda result: result.points[-1].loss
    ).candidate


def _probe(at: Started, workload: Workload, costs: Costs) -> SensitivityProfile:
    scale = workload.scale
    settings = ProbeSettings(
        seed=scale.seed,
        batch_size=scale.batch_size,
        space=SPACE,
        costs=costs,
        deadline=scale.probe_steps * costs.seconds_per_step,
    )
    return at.pool.apply(0, run_probe, settings)


def _search(
    at: Started, workload: Workload, costs: Costs, profile: SensitivityProfile, wall_left: Callable[[], float]
) -> list[TrialResult]:
    """The search of a run, Ray Tune and all, until there are as many candidates as wanted or the time is up. What is
    under way then is not counted."""
    scale, records = workload.scale, MemoryRecords()
    return run_search(
        at.pool.handles,
        space=SPACE,
        layout=workload.summary.layout,
        profile=profile,
        plan=_plan(at, workload, costs),
        seed=scale.seed,
        records=records,
        study_path=workload.folder / "study.db",
        scratch=workload.folder,
        wall_left=wall_left,
        stop=lambda: len(records.results()) >= scale.search_trials,
    )


def _plan(at: Started, workload: Workload, costs: Costs) -> Plan:
    """What the search reads of a plan, which here no budget makes."""
    scale = workload.scale
    return Plan(
        engines=at.pool.size,
        packing=at.packing,
        costs=costs,
        wall_seconds=None,
        batch_size=scale.batch_size,
        full_steps=scale.full_steps,
        rungs=scale.rungs,
        trial_limit=None,
        expected_trials=scale.search_trials,
        confirm_steps=scale.full_steps,
        confirm_seeds=1,
        finalists=1,
        validation_examples=scale.validation_examples,
        test_examples=len(workload.dataset.test),
        generated_examples=0,
        stages=(),
        disk_bytes=0,
        memory_bytes=0,
    )


def _retrained(
    at: Started, workload: Workload, winner: Candidate, rival: Candidate
) -> tuple[list[list[ExampleLoss]], list[list[ExampleLoss]]]:
    """Test losses of both by seed, of full trainings on seeds that neither was chosen on."""
    seeds = range(workload.full.seed + 1, workload.full.seed + 1 + workload.scale.full_seeds)
    trainings = [(candidate, seed) for candidate in (winner, rival) for seed in seeds]
    found = in_slots(range(at.pool.size), trainings, lambda engine, each: _test_losses(at, workload, engine, *each))
    return found[: len(seeds)], found[len(seeds) :]


def _difference(
    ours: Sequence[Sequence[ExampleLoss]], theirs: Sequence[Sequence[ExampleLoss]], groups: Sequence[Hashable]
) -> Interval:
    """Of the token means over all seeds. What seeds and what questions make of it are independent, so that the squares
    of their half widths add up."""
    each = np.array([[loss for loss, _ in losses] for losses in ours])
    each -= np.array([[loss for loss, _ in losses] for losses in theirs])
    weights = [tokens for _, tokens in ours[0]]
    by_question = paired_bootstrap(each.mean(axis=0).tolist(), weights=weights, groups=groups)
    by_seed = paired_bootstrap([token_mean(zip(row, weights, strict=True)) for row in each.tolist()])
    below = math.hypot(by_question.mean - by_question.low, by_seed.mean - by_seed.low)
    above = math.hypot(by_question.high - by_question.mean, by_seed.high - by_seed.mean)
    return by_question.model_copy(update={"low": by_question.mean - below, "high": by_question.mean + above})


def _test_losses(at: Started, workload: Workload, engine: int, candidate: Candidate, seed: int) -> list[ExampleLoss]:
    fidelity = workload.full.model_copy(update={"seed": seed})
    session = call(at.pool, engine, "admit", candidate, fidelity)
    call(at.pool, engine, "advance", session, fidelity.steps)
    losses: list[ExampleLoss] = call(at.pool, engine, "losses", "test", session, None)
    call(at.pool, engine, "evict", session)
    return losses
