"""B, search level: candidates screened per device-hour by probe and campaign, against training each to the end."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Lock

from bandsearch.adapters.lora import trainable_parameters
from bandsearch.engine.failures import DivergedError, OutOfMemoryError
from bandsearch.engine.measure import measure_costs
from bandsearch.probe.probe import ProbeSettings, run_probe
from bandsearch.search.campaign import Campaign
from bandsearch.search.candidates import CandidateCode
from bandsearch.values.candidate import Candidate
from bandsearch.values.plan import ETA
from bandsearch.values.profile import SensitivityProfile
from bandsearch.values.space import SearchSpace
from bandsearch.values.trial import TrialResult, TrialState
from bandsearch.values.value import Value
from benchmarks.job import Trained
from benchmarks.ours import Started, call, in_slots, started, token_mean
from benchmarks.processes import Timing
from benchmarks.workload import Workload


class Screening(Value):
    """Seconds of `ours` run from the first process to the last reading, probe included; retraining is not in them."""

    b_naive: float
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


def screen(workload: Workload, naive: Timing, exhaustive: list[Trained]) -> Screening:
    """`naive` is the measured arm of A; `exhaustive` are the frozen candidates trained to the last rung.

    Naive takes the frozen candidate with the lowest last loss; ours the best of the campaign. Both are trained again
    by the same engine at full length, and judged on the test split, on which nothing was chosen.
    """
    began = time.perf_counter()
    with started(workload) as at:
        profile = _probe(at, workload)
        minutes = workload.scale.search_minutes
        results = _search(at, workload, profile, None if minutes is None else began + 60 * minutes)
        seconds = time.perf_counter() - began
        winner = best_of(results)
        rival = min(exhaustive, key=lambda trial: trial.validation_losses[-1]).candidate
        engines = [0, 1 % at.pool.size]
        with ThreadPoolExecutor(len(engines)) as threads:
            losses = list(threads.map(partial(_test_loss, at, workload), engines, (winner, rival)))
        base = token_mean(call(at.pool, 0, "losses", "test", None, None))
    tried = [result.candidate for result in results]
    naive_seconds = naive.seconds(workload, tried, starts=len(tried))
    states = [result.state.value for result in results]
    return Screening(
        b_naive=naive_seconds / seconds,
        trials=len(results),
        states={state: states.count(state) for state in sorted(set(states))},
        mean_steps=sum(result.steps for result in results) / len(results),
        ours_seconds=seconds,
        probe_seconds=profile.seconds,
        naive_seconds=naive_seconds,
        winner=str(winner),
        naive_winner=str(rival),
        winner_test_loss=losses[0],
        naive_winner_test_loss=losses[1],
        base_test_loss=base,
    )


def best_of(results: list[TrialResult]) -> Candidate:
    """The lowest loss among those that got furthest."""
    furthest = max(result.steps for result in results)
    return min(
        (result for result in results if result.steps == furthest), key=lambda result: result.points[-1].loss
    ).candidate


def _probe(at: Started, workload: Workload) -> SensitivityProfile:
    scale = workload.scale
    costs = at.pool.apply(0, measure_costs, scale.batch_size, scale.validation_examples)
    settings = ProbeSettings(
        seed=scale.seed,
        batch_size=scale.batch_size,
        space=SearchSpace(name="default"),
        costs=costs,
        deadline=scale.probe_steps * costs.seconds_per_step,
    )
    return at.pool.apply(0, run_probe, settings)


def _search(at: Started, workload: Workload, profile: SensitivityProfile, until: float | None) -> list[TrialResult]:
    """A campaign over all slots: the decisions of a run, without Ray Tune between them and the engines.

    It begins no more candidates after `until` on the performance counter, once there are as many as are frozen.
    """
    scale, layout = workload.scale, workload.summary.layout
    campaign = Campaign(
        CandidateCode(SearchSpace(name="default"), layout, profile.rate_range),
        profile,
        rungs=scale.rungs,
        eta=ETA,
        seed=scale.seed,
        expected=scale.search_trials,
        parameters=partial(trainable_parameters, layout=layout),
    )
    lock = Lock()

    def work(engine: int) -> None:
        while True:
            with lock:
                late = (
                    until is not None and time.perf_counter() > until and campaign.proposed >= len(workload.candidates)
                )
                if late or campaign.proposed >= scale.search_trials:
                    return
                proposal = campaign.propose()
            if proposal is None:
                return
            _drive(at, campaign, lock, engine, proposal.number, proposal.candidate, workload)
            with lock:
                campaign.finish(proposal.number)

    in_slots(at.slots, work)
    return campaign.results


def _drive(
    at: Started, campaign: Campaign, lock: Lock, engine: int, number: int, candidate: Candidate, workload: Workload
) -> None:
    session = call(at.pool, engine, "admit", candidate, workload.screened)
    for rung in workload.scale.rungs:
        try:
            point = call(at.pool, engine, "advance", session, rung)
        except (DivergedError, OutOfMemoryError) as error:
            state = TrialState.DIVERGED if isinstance(error, DivergedError) else TrialState.OUT_OF_MEMORY
            with lock:
                campaign.stop(number, state, str(error))
            break
        with lock:
            if not campaign.observe(number, point).goes_on:
                break
    call(at.pool, engine, "evict", session)


def _test_loss(at: Started, workload: Workload, engine: int, candidate: Candidate) -> float:
    session = call(at.pool, engine, "admit", candidate, workload.full)
    call(at.pool, engine, "advance", session, workload.full.steps)
    loss = token_mean(call(at.pool, engine, "losses", "test", session, None))
    call(at.pool, engine, "evict", session)
    return loss
