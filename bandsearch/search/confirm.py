"""Confirmation: finalists and tuned baselines at higher fidelity, over several seeds, and the decision."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from statistics import fmean

from bandsearch.adapters.lora import trainable_parameters
from bandsearch.data.dataset import Encoded
from bandsearch.engine.failures import LESS_MEMORY, DivergedError, OutOfMemoryError
from bandsearch.evaluate.retention import divergence_of
from bandsearch.search.clock import Clock
from bandsearch.search.decision import SEEDS_NEEDED, decide, tuned_baseline
from bandsearch.search.evidence import LOWEST_LOSS, Aim, Contender
from bandsearch.search.finalists import MOST_SEEDS, next_training, pick_finalists
from bandsearch.search.ports import Pool, Records
from bandsearch.search.proposal import Proposal
from bandsearch.search.rates import RETREAT
from bandsearch.values.candidate import Candidate, Role
from bandsearch.values.evaluation import Winner
from bandsearch.values.fidelity import Fidelity
from bandsearch.values.layout import Layout
from bandsearch.values.plan import Plan
from bandsearch.values.profile import SensitivityProfile
from bandsearch.values.progress import Listener, Stop, Update, never, silent
from bandsearch.values.trial import Point, TrialResult, TrialStage, TrialState

STAGE = TrialStage.CONFIRM
# What a full-depth baseline is made of where the search left none that can be trained: the habit, and slower.
HABIT_RANK, HABIT_ALPHA = 16, 32.0
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
    aim: Aim = LOWEST_LOSS,
    retention: Sequence[Encoded] = (),
    listen: Listener = silent,
    stop: Stop = never,
) -> Winner:
    """Train the finalists of `results` for `plan.confirm_steps` steps on fresh seeds, `plan.confirm_seeds` each on
    average, and decide.

    Every finished training is in `records` (stage "confirm") at once and is not done again by a later call. What does
    not fit into `wall_left()` seconds is left out in the order of `next_training`. A finalist that diverges gives
    its place to the next of its kind. Every adapter's divergence from the base is taken on the texts `retention`; with
    the objective of that name it decides between those within noise. When `stop()` turns true, decides on what there
    is. Raises BandsearchError where an engine is lost, and OutOfMemoryError where memory does not do for full depth.
    """
    texts = tuple(retention)
    # What is trained side by side is read one after the other.
    clock = Clock(wall_left, plan.costs.with_divergence(plan.packing * len(texts)))
    return _Confirmation(pool, results, layout, profile, plan, seed, records, clock, aim, texts, listen).winner(stop)


@dataclass
class _Confirmation:
    """A confirmation under way. `begun` names by identity and seed what is done, under way or given up."""

    pool: Pool
    results: Sequence[TrialResult]
    layout: Layout
    profile: SensitivityProfile
    plan: Plan
    seed: int
    records: Records
    clock: Clock
    aim: Aim
    texts: tuple[Encoded, ...]
    listen: Listener

    def __post_init__(self) -> None:
        # Of a plan with other steps only the failures count: its losses do not compare. Memory that was lacking may be
        # there by now.
        self.readings = [
            result
            for result in self.records.results()
            if result.stage is STAGE
            and result.steps in (0, self.plan.confirm_steps)
            and result.state is not TrialState.OUT_OF_MEMORY
        ]
        self.begun = {(result.candidate.identity, result.seed) for result in self.readings}
        self.running: dict[Future[TrialResult | None], int] = {}
        # The same engine once for each candidate that it trains side by side.
        self.idle = list(range(self.pool.size)) * self.plan.packing
        self.places = len(self.idle)

    def winner(self, stop: Stop) -> Winner:
        threads = ThreadPoolExecutor(self.places)
        try:
            while not stop():
                self._begin(threads)
                if not self.running:
                    break
                for training in wait(self.running, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED).done:
                    self.idle.append(self.running.pop(training))
                    if (result := training.result()) is not None:
                        self._keep(result)
        finally:
            # What still runs after a stop is left to end with its engine.
            threads.shutdown(wait=False, cancel_futures=True)
        contenders = self._contenders()
        return decide(contenders, tuned_baseline(contenders).proposal, self.plan.confirm_steps, self.aim)

    def _begin(self, threads: ThreadPoolExecutor) -> None:
        """Give every idle engine a training, as far as any is left to do."""
        contenders = self._contenders()
        while self.idle and (proposal := self._next(contenders)) is not None:
            engine = self.idle.pop(0)
            self.begun.add((proposal.candidate.identity, proposal.seed))
            self.running[threads.submit(self._train, engine, proposal)] = engine

    def _next(self, contenders: Sequence[Contender]) -> Proposal | None:
        """The next finalist with its seed; None when all is done or under way, or no further training fits."""
        plan, clock, running = self.plan, self.clock, len(self.running)
        if not clock.fits(plan.confirm_steps):
            return None
        seeds = [self.seed + 1 + place for place in range(max(plan.confirm_seeds, MOST_SEEDS))]
        started = {
            (index, place)
            for index, contender in enumerate(contenders)
            for place, seed in enumerate(seeds)
            if (contender.proposal.candidate.identity, seed) in self.begun
        }
        rounds = clock.rounds(plan.confirm_steps)
        # Side by side, what is begun on account of a round that then does not fit is left with one seed; the last of
        # several often does not.
        sure = rounds - 1 if self.places > 1 and rounds > 1 else rounds
        capacity = len(started) - running + max(running, self.places * sure)
        found = next_training(contenders, started, plan.confirm_seeds, capacity, self.aim)
        if found is None:
            return None
        index, place = found
        return contenders[index].proposal.model_copy(update={"seed": seeds[place]})

    def _train(self, engine: int, proposal: Proposal) -> TrialResult | None:
        """One training, and its divergence where there are texts; None where time ran out before its last step."""
        plan = self.plan
        # As the final training, but shorter.
        fidelity = Fidelity.final(
            plan.confirm_steps,
            batch_size=plan.batch_size,
            seed=proposal.seed,
            validation_examples=plan.validation_examples,
        )

        def call(method: str, *args: object) -> object:
            return self.pool.get(self.pool.submit(engine, method, *args))

        try:
            session = call("admit", proposal.candidate, fidelity)
            try:
                point = call("advance", session, fidelity.steps, self.clock.training_left)
                is_whole = isinstance(point, Point) and point.steps >= fidelity.steps
                measured = self.texts and is_whole
                divergence = self._divergence(engine, session) if measured else None
            finally:
                call("evict", session)
        except DivergedError as error:
            return proposal.result(TrialState.DIVERGED, (), str(error), stage=STAGE)
        except OutOfMemoryError as error:
            return proposal.result(TrialState.OUT_OF_MEMORY, (), str(error), stage=STAGE)
        if not isinstance(point, Point) or point.steps < fidelity.steps:
            return None
        if not math.isfinite(point.loss):
            return proposal.result(TrialState.DIVERGED, (), f"validation loss is {point.loss}", stage=STAGE)
        return proposal.result(TrialState.COMPLETE, (point,), stage=STAGE, divergence=divergence)

    def _divergence(self, engine: int, session: object) -> float | None:
        """None where memory, which did for the training, does not for PEFT's passes: nothing rests on it alone."""
        try:
            found: float = self.pool.apply(engine, divergence_of, session, self.texts)
        except OutOfMemoryError:
            return None
        return found

    def _contenders(self) -> list[Contender]:
        """Those that have not failed so far, with what they came to; full depth first, made up where none is left."""
        failed: set[str] = set()
        losses: dict[str, dict[int, float]] = {}
        divergences: dict[str, list[float]] = {}
        for result in self.readings:
            identity = result.candidate.identity
            if result.state is not TrialState.COMPLETE:
                failed.add(identity)
                continue
            losses.setdefault(identity, {})[result.seed] = result.points[-1].loss
            if result.divergence is not None:
                divergences.setdefault(identity, []).append(result.divergence)
        finalists = pick_finalists(self.results, self.layout.layer_count, self.plan.finalists, failed, losses)
        if not finalists or finalists[0].role is not Role.FULL_DEPTH:
            if any(_lacked_memory(result) for result in (*self.results, *self.readings)):
                # At a lower rate it takes as much.
                raise OutOfMemoryError(
                    "Full depth, which bands are compared with, does not fit into memory.", LESS_MEMORY
                )
            finalists.insert(0, _retreat(self.results, self.layout, self.profile))
        contenders = []
        for proposal in finalists:
            identity = proposal.candidate.identity
            kept = fmean(divergences[identity]) if identity in divergences else None
            contenders.append(Contender(proposal, losses.get(identity, {}), kept))
        return contenders

    def _keep(self, result: TrialResult) -> None:
        """Record a training and tell of it."""
        self.records.append(result)
        self.readings.append(result)
        contenders = self._contenders()
        most = max(len(each.losses) for each in contenders)
        # The first to end may have failed.
        enough = max(1, min(most, SEEDS_NEEDED))
        means = [fmean(each.losses.values()) for each in contenders if len(each.losses) >= enough]
        base = tuned_baseline(contenders).losses
        loss = f"loss {result.last_loss:.4f}" if result.points else result.state.value.replace("_", " ")
        complete = sum(reading.state is TrialState.COMPLETE for reading in self.readings)
        self.listen(
            Update(
                stage=STAGE,
                message=f"{result.role.value.replace('_', ' ')} {result.candidate}, seed {result.seed}: {loss}",
                done=min(1.0, len(self.readings) / (len(contenders) * self.plan.confirm_seeds)),
                best_loss=min(means, default=None),
                baseline_loss=fmean(base.values()) if base else None,
                running=len(self.running),
                finished=complete,
                failed=len(self.readings) - complete,
            )
        )


def _lacked_memory(result: TrialResult) -> bool:
    return result.role is Role.FULL_DEPTH and result.state is TrialState.OUT_OF_MEMORY


def _retreat(results: Sequence[TrialResult], layout: Layout, profile: SensitivityProfile) -> Proposal:
    """Full depth at a third of the slowest rate that failed, or of the probe's best where none was tried: what looks
    best after a few steps breaks off in many."""
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
