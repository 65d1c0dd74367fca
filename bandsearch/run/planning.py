"""What a budget buys: from measured costs to the counts every stage is given.

The final training and its evaluation are reserved first; what is left is shared by search and confirmation. All
sums are upper bounds: they use the cost of full-depth LoRA, and a narrower band is never dearer.
"""

from __future__ import annotations

import bisect
import math
import operator

from bandsearch.run.budgets import least_budget
from bandsearch.run.confirming import (
    BASELINES,
    CONFIRM_FRACTIONS,
    LEAST_TRAININGS,
    NOTHING,
    ConfirmChoice,
    confirm_choice,
    confirm_choices,
    confirm_seconds,
    confirm_share,
    confirm_texts,
)
from bandsearch.run.evaluating import evaluation_detail, evaluation_seconds, evaluation_size
from bandsearch.search.clock import MARGIN
from bandsearch.values.errors import BudgetError
from bandsearch.values.plan import ARMS, ETA, VALIDATIONS, Costs, Plan, StagePlan
from bandsearch.values.spec import RunSpec

# The probe's share, and what it may take of a small budget so as to do its least: rates that were not tried cost more.
PROBE_SHARE, LARGEST_PROBE_SHARE, LEAST_PROBE_STEPS = 0.03, 0.06, 30
# Promised is at most 2 % over; half of that and two seconds are kept back for what no measurement foresees.
SLACK_SHARE = 0.01
SLACK_SECONDS = 2.0
# Steps in shared passes per step of the length that search and confirmation are made for: 10 confirmations at 2/3 of it
# and about thirty proxies, most of which stop at a ninth.
SHARED_STEPS = 16
# Of what there is for training, what the final one may take to come closer to the epochs wanted; it is then longer than
# what the search is made for, at most so many times.
FINAL_SHARE, MOST_LENGTHENED = 0.25, 2
SMALLEST_FULL_STEPS = 20
SMALLEST_RUNG = 30
# Candidates of a search that is one: with fewer the rungs come sooner, as long as they stay telling.
ENOUGH_CANDIDATES = 40
# Who is compared at a rung: three width classes and four kinds of baseline. Of n in one of them about n/eta + 0.8 pass.
STRATA, PASSED_BESIDE = 7, 0.8
# Ray Tune's own start, seconds; measured on 2 cores.
SEARCH_START = 5.0


def make_plan(
    spec: RunSpec,
    costs: Costs,
    *,
    train_examples: int,
    validation_examples: int,
    test_examples: int,
    retention_texts: int = 0,
    engines: int,
    wall_seconds: float | None,
    adapter_bytes: int,
    known: Plan | None = None,
    confirming: bool = False,
) -> Plan:
    """The plan of a run. `wall_seconds` is what is left for it, None for a run bounded by its number of trials.

    `known` is the plan that the run began with: candidates are read at its rungs, and the costs are its own.
    Where finalists are being trained as it says, `confirming`, the others are trained as long and read on as many
    texts.

    Raises BudgetError naming the smallest budget that works where even the final training does not fit.
    """
    if spec.trials is not None:
        # Candidates that share passes end in an order that timing decides, and what is proposed next depends on it; and
        # the last bits of a final training, on how many engines share its steps.
        alone = {"packing": 1, "seconds_per_packed_step": costs.seconds_per_step, "shared_steps": ()}
        costs = costs.model_copy(update=alone)
    batch_size = min(spec.train.batch_size, train_examples)
    wanted = spec.train.steps or max(1, math.ceil(spec.train.epochs * train_examples / batch_size))
    bounded = wall_seconds is not None and spec.trials is None
    # One step of both arms.
    step = math.ceil(ARMS / engines) * costs.step_on(engines // ARMS).seconds * MARGIN
    least = wanted if spec.train.steps or spec.trials else min(wanted, SMALLEST_FULL_STEPS)

    # A budget that pays for one of them compares nothing.
    least_arms = ARMS if spec.trials is not None else 1

    def free_and_needed(wall: float) -> tuple[float, float]:
        size = evaluation_size(costs, test_examples, retention_texts, engines, wall)
        evaluation = evaluation_seconds(spec, costs, size, engines, wall, arms=least_arms)
        free = wall * (1 - SLACK_SHARE) - SLACK_SECONDS - probe_seconds(wall, costs) - costs.load_seconds - evaluation
        needed = _training_seconds(costs, least, least_arms, engines)
        if spec.trials is not None:
            needed += _search_seconds(spec.trials, _rungs(wanted), costs)
            (choice,) = confirm_choices(bounded=False)
            needed += confirm_seconds(spec, costs, choice.trainings, choice.fraction * wanted, size.retained, engines)
        return free, needed

    full_steps, searched, free = wanted, wanted, math.inf
    if wall_seconds is not None:
        free, needed = free_and_needed(wall_seconds)
        if free < needed:
            smallest = least_budget(spec, wall_seconds, lambda wall: operator.ge(*free_and_needed(wall)))
            raise BudgetError(
                f"The budget is too small: beside loading and evaluation it leaves {max(free, 0):.0f} s, and the "
                f"training itself needs {needed:.0f} s.",
                f"The smallest that works is about {smallest}.",
            )
        if bounded:
            # All engines are held while the arms are trained, whether they take part or not.
            shared = SHARED_STEPS * costs.seconds_per_candidate_step * MARGIN / engines
            lengths = (least, int(free / (step + shared)), int(FINAL_SHARE * free / step))
            full_steps = min(wanted, max(lengths))
            paid = int((free - full_steps * step) / shared)
            searched = min(full_steps, max(paid, math.ceil(full_steps / MOST_LENGTHENED)))
    size = evaluation_size(costs, test_examples, retention_texts, engines, wall_seconds)
    evaluate = evaluation_seconds(spec, costs, size, engines, wall_seconds)
    rungs = _rungs(searched) if known is None else known.rungs
    settled = known if confirming else None
    fractions = CONFIRM_FRACTIONS if settled is None else (settled.confirm_steps / searched,)
    choice, confirm, search, probe = _share(
        spec,
        costs,
        confirm_choices(bounded=bounded, fractions=fractions),
        size.retained,
        searched,
        rungs,
        engines,
        wall_seconds,
        fixed=costs.load_seconds + _training_seconds(costs, full_steps, ARMS, engines) + evaluate,
    )
    arms, expected = ARMS, spec.trials or 0
    if choice is NOTHING:
        # Two rates of full depth, or one where two do not fit.
        arms = ARMS if _steps_in(free, costs, ARMS, engines) >= least else 1
        full_steps = searched = max(least, min(wanted, _steps_in(free, costs, arms, engines)))
        evaluate = evaluation_seconds(spec, costs, size, engines, wall_seconds, arms=1)
    elif spec.trials is None:
        device_seconds = max(0.0, search - SEARCH_START) * engines
        expected = candidates_for(device_seconds, rungs, costs)
        while known is None and expected < ENOUGH_CANDIDATES and rungs[0] / ETA >= SMALLEST_RUNG:
            rungs = tuple(round(rung / ETA) for rung in rungs)
            expected = candidates_for(device_seconds, rungs, costs)
    # No more than was paid for; a known plan's length comes back from its fraction.
    confirm_steps = max(rungs[-1], math.floor(searched * choice.fraction + 1e-6))
    texts = confirm_texts(spec, costs, confirm_steps, size.retained) if settled is None else settled.confirm_texts
    final_length = f"{full_steps} steps"
    if full_steps < wanted:
        final_length = f"{full_steps} of {wanted} steps{', more if time is left' if bounded else ''}"
    final_length += _together(costs.step_on(engines // arms).engines)
    details = {
        "load": (costs.load_seconds, f"{engines} engine(s), base model loaded once each, timed"),
        "probe": (probe, "gradients, learning-rate range, short full-depth run"),
        "search": (search, f"about {expected} candidates, rungs {_arrow(rungs)} steps"),
        "confirm": (confirm, _confirmed(choice, confirm_steps, texts)),
        "retrain": (_training_seconds(costs, full_steps, arms, engines), f"{_finally(choice, arms)}, {final_length}"),
        "evaluate": (evaluate, evaluation_detail(spec, size, engines)),
    }
    if choice is NOTHING:
        nothing = "nothing, since too little could be confirmed to compare anything"
        details |= {"search": (0.0, nothing), "confirm": (0.0, nothing)}
    stages = [StagePlan(name=name, seconds=seconds, detail=detail) for name, (seconds, detail) in details.items()]
    if wall_seconds is not None:
        rest = wall_seconds - sum(stage.seconds for stage in stages)
        stages.append(StagePlan(name="slack", seconds=max(0.0, rest), detail="kept back, so that the run ends in time"))
    return Plan(
        engines=engines,
        packing=costs.packing,
        costs=costs,
        wall_seconds=wall_seconds,
        batch_size=batch_size,
        full_steps=full_steps,
        wanted_steps=wanted,
        rungs=rungs,
        trial_limit=spec.trials,
        expected_trials=expected,
        confirm_steps=confirm_steps,
        confirm_seeds=choice.seeds,
        confirm_texts=texts,
        finalists=choice.finalists,
        final_trainings=arms,
        validation_examples=min(validation_examples, 256),
        test_examples=size.test,
        generated_examples=size.generated,
        retention_texts=size.retained,
        stages=tuple(stages),
        # Two checkpoints of two trainings, each with two AdamW moments, the export, and records.
        disk_bytes=14 * adapter_bytes + 20_000_000,
        memory_bytes=costs.peak_memory_bytes * engines,
    )


def final_steps(plan: Plan, wall_left: float, arms: int) -> int:
    """Steps of the final training of so many arms that `wall_left` seconds pay for.

    What search and confirmation left makes the adapter better: no fewer than planned, no more than the epochs ask for.
    Whether the winner's band bears the greater length is seen when both arms are compared at its end.
    """
    if plan.wall_seconds is None or plan.trial_limit is not None or plan.wanted_steps is None:
        return plan.full_steps
    return max(plan.full_steps, min(plan.wanted_steps, _steps_in(wall_left, plan.costs, arms, plan.engines)))


def least_rest(plan: Plan) -> float:
    """Wall seconds of the smallest final training and its evaluation; no more than the plan sets aside for them, so
    that a run that is broken off and goes on at once is not refused."""
    training = _training_seconds(
        plan.costs, min(SMALLEST_FULL_STEPS, plan.full_steps), plan.final_trainings, plan.engines
    )
    return min(training, plan.seconds_of("retrain")) + plan.seconds_of("evaluate")


def _share(
    spec: RunSpec,
    costs: Costs,
    choices: list[ConfirmChoice],
    retained: int,
    searched: int,
    rungs: tuple[int, ...],
    engines: int,
    wall_seconds: float | None,
    *,
    fixed: float,
) -> tuple[ConfirmChoice, float, float, float]:
    """How to confirm, and the seconds of confirm, search and probe, made for a training of `searched` steps. `fixed`
    are those of all else."""

    def seconds_of(trainings: int, fraction: float) -> float:
        return confirm_seconds(spec, costs, trainings, fraction * searched, retained, engines)

    if wall_seconds is None or spec.trials is not None:
        search = _search_seconds(spec.trials or 1, rungs, costs)
        probe = 60 * costs.seconds_per_step if wall_seconds is None else probe_seconds(wall_seconds, costs)
        return choices[0], seconds_of(choices[0].trainings, choices[0].fraction), search, probe
    probe = probe_seconds(wall_seconds, costs)
    least = seconds_of(LEAST_TRAININGS, min(choice.fraction for choice in choices))

    left = max(0.0, wall_seconds * (1 - SLACK_SHARE) - SLACK_SECONDS - fixed - probe)
    choice = confirm_choice(choices, seconds_of, confirm_share(left, least))
    confirm = min(seconds_of(choice.trainings, choice.fraction), confirm_share(left, least))
    return choice, confirm, left - confirm, probe


def probe_seconds(wall: float, costs: Costs) -> float:
    """Of a budget of `wall` seconds."""
    return min(max(PROBE_SHARE * wall, LEAST_PROBE_STEPS * costs.seconds_per_step), LARGEST_PROBE_SHARE * wall)


def _rungs(searched: int) -> tuple[int, ...]:
    """Rungs at a third of that length and, as long as they stay telling, at a ninth and a twenty-seventh."""
    rungs = [max(1, round(searched / ETA))]
    while len(rungs) < 3 and rungs[0] / ETA >= SMALLEST_RUNG:
        rungs.insert(0, round(rungs[0] / ETA))
    return tuple(rungs)


def _proxies_seconds(trials: int, rungs: tuple[int, ...], costs: Costs) -> float:
    """Of so many candidates, one engine. All reach the first rung, a third each next one, and some in every stratum
    because they were the first there."""
    steps, validations, there, before = 0.0, 0.0, float(trials), 0
    for rung in rungs:
        steps += there * (rung - before)
        validations += there
        there, before = min(there, there / ETA + STRATA * PASSED_BESIDE), rung
    return steps * costs.seconds_per_candidate_step * MARGIN + validations * costs.seconds_per_validation


def candidates_for(seconds: float, rungs: tuple[int, ...], costs: Costs) -> int:
    """How many candidates `seconds` of one engine do for."""
    most = int(seconds / _proxies_seconds(1, rungs[:1], costs))
    return bisect.bisect_right(range(most + 1), seconds, key=lambda trials: _proxies_seconds(trials, rungs, costs)) - 1


def _search_seconds(trials: int, rungs: tuple[int, ...], costs: Costs) -> float:
    return SEARCH_START + _proxies_seconds(trials, rungs, costs)


def _validations(costs: Costs, engines: int) -> float:
    """Of a final training on its way, on so many engines."""
    return VALIDATIONS * costs.seconds_per_validation / engines


def settling_seconds(costs: Costs, arms: int) -> float:
    """What so many arms take once they are trained: two are read again, to be compared."""
    return 2 * costs.seconds_per_validation if arms > 1 else 0.0


def _training_seconds(costs: Costs, steps: int, arms: int, engines: int) -> float:
    """Of the final training of so many arms, with all readings."""
    own, rounds = costs.step_on(engines // arms), math.ceil(arms / engines)
    each = steps * own.seconds * MARGIN + _validations(costs, own.engines)
    return rounds * each + settling_seconds(costs, arms)


def _steps_in(seconds: float, costs: Costs, arms: int, engines: int) -> int:
    """How long a final training of so many arms `seconds` pay for."""
    begun = _training_seconds(costs, 0, arms, engines)
    return int((seconds - begun) / (_training_seconds(costs, 1, arms, engines) - begun))


def _finally(choice: ConfirmChoice, arms: int) -> str:
    if choice is not NOTHING:
        return "winner and full-depth baseline"
    return "full depth at two rates" if arms > 1 else "full depth"


def _confirmed(choice: ConfirmChoice, steps: int, texts: int) -> str:
    who = f"{choice.finalists} finalists and {BASELINES} baselines"
    if choice.baselines < BASELINES:
        who = f"{choice.finalists} finalists and full depth at two rates (other baselines where time is left)"
    seeds = f"{choice.seeds} seed{'s' if choice.seeds > 1 else ''}"
    return f"{who}, {steps} steps, {seeds}{f', {texts} texts for forgetting' if texts else ''}"


def _together(engines: int) -> str:
    return f", each on {engines} engines together" if engines > 1 else ""


def _arrow(rungs: tuple[int, ...]) -> str:
    return " → ".join(map(str, rungs))
