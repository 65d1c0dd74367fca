"""Confirmation: finalists and tuned baselines at higher fidelity, over several seeds, and the decision."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from statistics import fmean

from ray.exceptions import RayActorError, RayTaskError

from bandsearch.adapters.lora import trainable_parameters
from bandsearch.data.dataset import Encoded
from bandsearch.engine.failures import DivergedError, OutOfMemoryError
from bandsearch.evaluate.retention import divergence_of
from bandsearch.search.clock import Clock
from bandsearch.search.decision import SEEDS_NEEDED, Contender, decide, tuned_baseline
from bandsearch.search.failures import in_words
from bandsearch.search.finalists import MOST_SEEDS, next_training, pick_finalists
from bandsearch.search.ports import Pool, Records
from bandsearch.search.proposal import Proposal
from bandsearch.values.candidate import Candidate, Role
from bandsearch.values.evaluation import Winner
from bandsearch.values.fidelity import Fidelity
from bandsearch.values.layout import Layout
from bandsearch.values.plan import Plan
from bandsearch.values.profile import SensitivityProfile
from bandsearch.values.progress import Listener, Update, silent
from bandsearch.values.spec import Objective
from bandsearch.values.trial import Point, TrialResult, TrialStage, TrialState

STAGE = TrialStage.CONFIRM
# What a full-depth baseline is made of where the search left none that can be trained: the habit, and slower.
HABIT_RANK, HABIT_ALPHA = 16, 32.0
RETREAT = 3.0
POLL_SECONDS = 0.2


def confirm(
    pool: Pool,
    *,
    results: Sequence[TrialResult],
    layout: Layout,
    profile: SensitivityProfile,
    plan: Plan,
    seed: int,
    records: Records,
    wall_left: Callable[[], float],
    objective: Objective = Objective.LOSS,
    retention: Sequence[Encoded] = (),
    listen: Listener = silent,
    stop: Callable[[], bool] = lambda: False,
) -> Winner:
    """Train the finalists of `results` for `plan.confirm_steps` steps on fresh seeds, `plan.confirm_seeds` each on
    average, and decide.

    Every finished training is in `records` (stage "confirm") at once and is not done again by a later call. What does
    not fit into `wall_left()` seconds is left out in the order of `next_training`. A finalist that diverges gives
    its place to the next of its kind. With the objective `retention` every adapter's divergence from the base is taken
    on the texts `retention`, and decides between those within noise. When `stop()` turns true, decides on what there
    is. Raises BandsearchError where an engine is lost.
    """
    texts = tuple(retention) if objective is Objective.RETENTION else ()
    clock = Clock(wall_left, plan.costs.with_divergence(len(texts)))
    seeds = [seed + 1 + index for index in range(max(plan.confirm_seeds, MOST_SEEDS))]
    idle = list(range(pool.size)) * plan.packing
    places = len(idle)
    running: dict[Future[TrialResult | None], tuple[int, Proposal]] = {}
    given_up: set[tuple[str, int]] = set()
    readings = [result for result in records.results() if result.stage is STAGE]
    threads = ThreadPoolExecutor(places)
    try:
        while not stop():
            finalists = _finalists(results, readings, layout, profile, plan)
            under_way = {(proposal.candidate.identity, proposal.seed) for _, proposal in running.values()}
            settled = {(r.candidate.identity, r.seed) for r in readings} | under_way | given_up
            contenders = [_contender(proposal, readings) for proposal in finalists]
            while idle:
                proposal = _next(contenders, seeds, settled, len(running), clock, plan, places, objective)
                if proposal is None:
                    break
                engine = idle.pop(0)
                settled.add((proposal.candidate.identity, proposal.seed))
                training = threads.submit(
                    _train, pool, engine, proposal, confirm_fidelity(plan, proposal.seed), clock, texts
                )
                running[training] = (engine, proposal)
            if not running:
                break
            for training in wait(running, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED).done:
                engine, proposal = running.pop(training)
                idle.append(engine)
                result = training.result()
                if result is None:
                    given_up.add((proposal.candidate.identity, proposal.seed))
                else:
                    records.append(result)
                    readings.append(result)
                    _tell(listen, readings, finalists, len(running), plan, result)
    finally:
        # What still runs after a stop is left to end with its engine.
        threads.shutdown(wait=False, cancel_futures=True)
    finalists = _finalists(results, readings, layout, profile, plan)
    contenders = [_contender(proposal, readings) for proposal in finalists]
    return decide(contenders, tuned_baseline(contenders).proposal, plan.confirm_steps, objective)


def confirm_fidelity(plan: Plan, seed: int) -> Fidelity:
    """As the final training, but shorter."""
    return Fidelity.final(
        plan.confirm_steps, batch_size=plan.batch_size, seed=seed, validation_examples=plan.validation_examples
    )


def _finalists(
    results: Sequence[TrialResult],
    readings: Sequence[TrialResult],
    layout: Layout,
    profile: SensitivityProfile,
    plan: Plan,
) -> list[Proposal]:
    """Those that have not failed so far; the full-depth baseline comes first, made up where none is left."""
    failed = {result.candidate.identity for result in readings if result.state is not TrialState.COMPLETE}
    confirmed: dict[str, dict[int, float]] = {}
    for result in readings:
        if result.state is TrialState.COMPLETE:
            confirmed.setdefault(result.candidate.identity, {})[result.seed] = result.points[-1].loss
    finalists = pick_finalists(results, layout.layer_count, plan.finalists, failed, confirmed)
    if not finalists or finalists[0].role is not Role.FULL_DEPTH:
        finalists.insert(0, _retreat(results, layout, profile))
    return finalists


def _retreat(results: Sequence[TrialResult], layout: Layout, profile: SensitivityProfile) -> Proposal:
    """Full depth at a third of the slowest rate that failed, or of the probe's best where none was tried."""
    tried = [result for result in results if result.role is Role.FULL_DEPTH]
    if tried:
        slowest = min(tried, key=lambda result: result.candidate.learning_rate)
        rate = slowest.candidate.learning_rate / RETREAT
        proposal = Proposal.of(slowest)
        return proposal.model_copy(
            update={"candidate": proposal.candidate.model_copy(update={"learning_rate": rate}), "proposed_by": STAGE}
        )
    rate = profile.rate_range.best / RETREAT
    candidate = Candidate.full_depth(layout.layer_count, rank=HABIT_RANK, alpha=HABIT_ALPHA, learning_rate=rate)
    return Proposal(
        number=max((result.number for result in results), default=-1) + 1,
        candidate=candidate,
        role=Role.FULL_DEPTH,
        proposed_by=STAGE,
        seed=0,
        trainable_parameters=trainable_parameters(candidate, layout),
    )


def _next(
    contenders: Sequence[Contender],
    seeds: Sequence[int],
    settled: set[tuple[str, int]],
    running: int,
    clock: Clock,
    plan: Plan,
    places: int,
    objective: Objective,
) -> Proposal | None:
    """The next finalist with its seed; None when all is done or under way, or no further training fits."""
    if not clock.fits(plan.confirm_steps):
        return None
    started = {
        (index, place)
        for index, contender in enumerate(contenders)
        for place, seed in enumerate(seeds)
        if (contender.proposal.candidate.identity, seed) in settled
    }
    rounds = clock.rounds(plan.confirm_steps)
    # Side by side, what is begun on account of a round that then does not fit is left with one seed; the last of
    # several often does not.
    sure = rounds - 1 if places > 1 and rounds > 1 else rounds
    capacity = len(started) - running + max(running, places * sure)
    found = next_training(contenders, started, plan.confirm_seeds, capacity, objective)
    if found is None:
        return None
    index, place = found
    return contenders[index].proposal.model_copy(update={"seed": seeds[place]})


def _train(
    pool: Pool, engine: int, proposal: Proposal, fidelity: Fidelity, clock: Clock, texts: Sequence[Encoded]
) -> TrialResult | None:
    """One training, and its divergence on `texts` if there are any; None where time ran out before its last step."""

    def call(method: str, *args: object) -> object:
        return pool.get(pool.submit(engine, method, *args))

    try:
        session = call("admit", proposal.candidate, fidelity)
        try:
            point = call("advance", session, fidelity.steps, clock.training_left)
            is_whole = isinstance(point, Point) and point.steps >= fidelity.steps
            divergence = pool.apply(engine, divergence_of, session, texts) if texts and is_whole else None
        finally:
            call("evict", session)
    except DivergedError as error:
        return proposal.result(TrialState.DIVERGED, (), str(error), stage=STAGE)
    except OutOfMemoryError as error:
        return proposal.result(TrialState.OUT_OF_MEMORY, (), str(error), stage=STAGE)
    except (RayTaskError, RayActorError) as error:
        raise in_words(error) from error
    if not isinstance(point, Point) or point.steps < fidelity.steps:
        return None
    if not math.isfinite(point.loss):
        return proposal.result(TrialState.DIVERGED, (), f"validation loss is {point.loss}", stage=STAGE)
    return proposal.result(TrialState.COMPLETE, (point,), stage=STAGE, divergence=divergence)


def _contender(proposal: Proposal, readings: Sequence[TrialResult]) -> Contender:
    complete = [
        result for result in readings if result.candidate == proposal.candidate and result.state is TrialState.COMPLETE
    ]
    divergences = [result.divergence for result in complete if result.divergence is not None]
    return Contender(
        proposal,
        {result.seed: result.points[-1].loss for result in complete},
        sum(divergences) / len(divergences) if divergences else None,
    )


def _tell(
    listen: Listener,
    readings: Sequence[TrialResult],
    finalists: Sequence[Proposal],
    running: int,
    plan: Plan,
    result: TrialResult,
) -> None:
    contenders = [_contender(proposal, readings) for proposal in finalists]
    most = max(len(each.losses) for each in contenders)
    means = [fmean(each.losses.values()) for each in contenders if len(each.losses) >= min(most, SEEDS_NEEDED)]
    base = tuned_baseline(contenders).losses
    loss = f"loss {result.last_loss:.4f}" if result.points else result.state.value.replace("_", " ")
    listen(
        Update(
            stage=STAGE,
            message=f"{result.role.value.replace('_', ' ')} {result.candidate}, seed {result.seed}: {loss}",
            done=min(1.0, len(readings) / (len(finalists) * plan.confirm_seeds)),
            best_loss=min(means, default=None),
            baseline_loss=fmean(base.values()) if base else None,
            running=running,
            finished=sum(reading.state is TrialState.COMPLETE for reading in readings),
            failed=sum(reading.state is not TrialState.COMPLETE for reading in readings),
        )
    )
