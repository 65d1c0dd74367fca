"""bandsearch played on a table: its own campaign, its own confirmation with its own decision, on tabulated losses.

One run has one budget, as a person gives it: the probe that it pays for comes first, the final training of the winner
and of the baseline is set aside, the rest is shared by search and confirmation, and what it hands over is judged. What
it would have handed over half way is of no account.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from bandsearch.adapters.lora import trainable_parameters
from bandsearch.engine.failures import DivergedError
from bandsearch.run.confirming import LEAST_TRAININGS, NOTHING, confirm_choice, confirm_choices, confirm_share
from bandsearch.run.planning import candidates_for
from bandsearch.search.campaign import Campaign
from bandsearch.search.candidates import CandidateCode
from bandsearch.search.clock import MARGIN
from bandsearch.search.confirm import confirm
from bandsearch.search.evidence import Aim
from bandsearch.search.proposer import Sampler
from bandsearch.search.rates import better_rate, full_depth_alone
from bandsearch.search.search import proxy_fidelity
from bandsearch.values.atlas import Suggestion
from bandsearch.values.candidate import Candidate
from bandsearch.values.evaluation import Choice
from bandsearch.values.fidelity import Fidelity
from bandsearch.values.plan import ARMS, ETA, Costs, Plan, StagePlan
from bandsearch.values.profile import SensitivityProfile
from bandsearch.values.spec import TOLERANCE
from bandsearch.values.trial import Point, TrialResult, TrialState
from benchmarks.bandbench.entry import Entry
from benchmarks.bandbench.space import code_of
from benchmarks.bandbench.table import Table
from benchmarks.bandbench.world import World
from benchmarks.records import MemoryRecords


class HandedOver(NamedTuple):
    seconds: float
    option: int
    choice: str
    proposed: int


def bandsearch(
    world: World,
    budget: float,
    sampler: Sampler = Sampler.TPE,
    prior: Sequence[Suggestion] = (),
    tolerance: float = TOLERANCE,
    probed: bool = True,
    own_rates: bool = False,
) -> HandedOver | None:
    """None where `budget` device seconds do not pay for the probe and the final training of full depth. Without
    `probed` the probe's bands are not tried first. The table's learning rates are given, as to every other arm; with
    `own_rates` it searches those that its probe finds."""
    table, pool = world.table, TablePool(world)
    profile = table.profile_within(budget)
    if not probed:
        profile = profile.model_copy(update={"proposals": ()})
    left = budget - profile.seconds
    code = code_of(table, profile.rate_range if own_rates else None)
    plan = _plan(table, left)
    if plan is None:
        return _uncompared(world, code, profile, left, prior)
    results = _search(table, code, profile, pool, plan, world.seed, sampler, prior)
    winner = confirm(
        pool,
        results=results,
        layout=table.header.layout,
        profile=profile,
        plan=plan,
        seed=world.seed,
        records=MemoryRecords(),
        wall_left=lambda: (plan.wall_seconds or 0.0) - pool.spent,
        aim=Aim(tolerance=tolerance),
    )
    option, baseline = world.nearest(winner.candidate), world.nearest(winner.baseline)
    final = sum(table.seconds(each, table.header.full_steps) for each in {option, baseline})
    # As `settle` has it, which tells noise from the validation examples: a table has none.
    behind, reached = (world.loss(each, -1, world.seed) for each in (winner.candidate, winner.baseline))
    is_behind = behind - reached > max(table.noise, tolerance * reached)
    option, choice = (baseline, Choice.BASELINE) if is_behind else (option, winner.choice)
    return HandedOver(profile.seconds + pool.spent + final, option, choice.value, len(results))


def _uncompared(
    world: World, code: CandidateCode, profile: SensitivityProfile, left: float, prior: Sequence[Suggestion]
) -> HandedOver | None:
    """Full depth at the rates that `left` device seconds pay for in full, which is the length that was asked for; None
    where they do not for one."""
    table, steps = world.table, world.table.header.full_steps
    trainings = min(ARMS, int(left / table.seconds(table.full_depth, steps)))
    if trainings == 0:
        return None
    winner = full_depth_alone(code, table.header.layout, profile, trainings, TOLERANCE, prior)
    tried = {each: world.nearest(each) for each in (winner.candidate, winner.baseline)}
    if len(tried) > 1:
        winner = better_rate(winner, {each: world.loss(each, -1, world.seed) for each in tried})
    final = sum(table.seconds(option, steps) for option in tried.values())
    return HandedOver(profile.seconds + final, tried[winner.candidate], winner.choice.value, 0)


def record_of(other: Table, table: Table, budget: float) -> tuple[Suggestion, ...]:
    """What a run that found the best of another task's table would recommend here: that candidate, the same at the rate
    that the probe of `budget` finds here, and full depth at its best rate there."""
    pieces = 2 if table.splits else 1
    entries = {index: other.options[index].entry for index in other.own}
    habit = Entry(bands=((0, other.layer_count),), rank=other.habit[0], targets=other.habit[1])
    searched = [i for i, each in entries.items() if each != habit and len(each.bands) <= pieces]
    best = other.options[min(searched, key=lambda index: other.full[index])].candidate
    here = best.model_copy(update={"learning_rate": table.profile_within(budget).rate_range.best})
    full = next(other.options[index].candidate for index, each in entries.items() if each == habit)
    return tuple(Suggestion(candidate=each, reason=other.header.task) for each in dict.fromkeys((best, here, full)))


def misleading(table: Table) -> tuple[Suggestion, ...]:
    """The worst band that trained at all."""
    finite = [index for index in table.own if math.isfinite(table.full[index]) and table.options[index].entry.is_band]
    worst = table.options[max(finite, key=lambda index: table.full[index])].candidate
    return (Suggestion(candidate=worst, reason="the worst"),)


def _search(
    table: Table,
    code: CandidateCode,
    profile: SensitivityProfile,
    pool: TablePool,
    plan: Plan,
    seed: int,
    sampler: Sampler,
    prior: Sequence[Suggestion],
) -> list[TrialResult]:
    """As Ray Tune drives a campaign over one engine, until a first rung no longer fits or nothing new is left."""
    campaign = Campaign(
        code,
        profile,
        rungs=plan.rungs,
        eta=ETA,
        seed=seed,
        expected=plan.expected_trials,
        parameters=partial(trainable_parameters, layout=table.header.layout),
        sampler=sampler,
        prior=prior,
    )
    fidelity, seconds = proxy_fidelity(plan, seed), plan.seconds_of("search")
    while pool.spent + plan.rungs[0] * plan.costs.seconds_per_step <= seconds:
        proposal = campaign.propose()
        if proposal is None:
            break
        session = pool.get(pool.submit(0, "admit", proposal.candidate, fidelity))
        for steps in plan.rungs:
            try:
                point = pool.get(pool.submit(0, "advance", session, steps))
            except DivergedError as error:
                campaign.stop(proposal.number, TrialState.DIVERGED, str(error))
                break
            if not campaign.observe(proposal.number, point).goes_on:
                break
        campaign.finish(proposal.number)
    return campaign.results


def _plan(table: Table, left: float) -> Plan | None:
    """The most telling confirmation that fits its share of what is `left` after the probe, the final trainings set
    aside, as a run's plan has it; the lengths are the table's. None where nothing could be compared."""
    step = table.seconds(table.full_depth, 1)
    rungs, full = table.header.rungs, table.header.full_steps

    def seconds_of(trainings: int, fraction: float) -> float:
        return trainings * fraction * full * step

    least = MARGIN * seconds_of(LEAST_TRAININGS, 1.0)
    free = left - ARMS * full * step
    share = confirm_share(free, least)
    choice = confirm_choice(confirm_choices(bounded=True, fractions=(1.0,)), seconds_of, share)
    if choice is NOTHING:
        return None
    costs = Costs(
        seconds_per_step=step,
        packing=1,
        seconds_per_packed_step=step,
        seconds_per_validation=0,
        seconds_per_test_loss=0,
        seconds_per_generation=0,
        load_seconds=0,
        peak_memory_bytes=0,
    )
    return Plan(
        engines=1,
        packing=1,
        costs=costs,
        wall_seconds=free,
        batch_size=table.header.batch_size,
        full_steps=full,
        rungs=rungs,
        trial_limit=None,
        expected_trials=max(1, candidates_for(free - share, rungs, costs)),
        confirm_steps=full,
        confirm_seeds=choice.seeds,
        finalists=choice.finalists,
        validation_examples=table.header.validation_examples,
        test_examples=1,
        generated_examples=0,
        stages=(StagePlan(name="search", seconds=free - share, detail=""),),
        disk_bytes=0,
        memory_bytes=0,
    )


class TablePool:
    """One engine that answers from a world; `spent` are the device seconds that real trainings would have taken."""

    size = 1

    def __init__(self, world: World) -> None:
        self._world = world
        self._columns = {steps: column for column, steps in enumerate(world.table.header.rungs)}
        self._sessions: dict[str, tuple[Candidate, Fidelity, int]] = {}
        self.spent, self._admitted = 0.0, 0

    def submit(self, index: int, method: str, *args: Any) -> Any:
        return method, args

    def get(self, reference: Any) -> Any:
        method, args = reference
        methods: dict[str, Callable[..., Any]] = {
            "admit": self._admit,
            "advance": self._advance,
            "evict": self._evict,
        }
        return methods[method](*args)

    def _admit(self, candidate: Candidate, fidelity: Fidelity) -> str:
        self._admitted += 1
        self._sessions[str(self._admitted)] = (candidate, fidelity, 0)
        return str(self._admitted)

    def _advance(self, session: str, steps: int, deadline: float | None = None) -> Point:
        candidate, fidelity, done = self._sessions[session]
        in_full = fidelity.steps not in self._columns
        seconds = self._world.table.seconds(self._world.nearest(candidate), steps - done)
        self.spent += seconds
        loss = self._world.loss(candidate, -1 if in_full else self._columns[steps], fidelity.seed)
        if math.isinf(loss):
            self._evict(session)
            raise DivergedError("The training loss is not a number.", "Lower the rate.")
        self._sessions[session] = (candidate, fidelity, steps)
        return Point(steps=steps, loss=loss, seconds=seconds)

    def _evict(self, session: str) -> None:
        self._sessions.pop(session, None)
