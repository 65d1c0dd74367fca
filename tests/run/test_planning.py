"""A plan stays inside its budget, spends it, and refuses what cannot work with the budget that would."""

import heapq
import math
import re

import pytest
from costs import costs_of
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bandsearch.run.advice import with_advice
from bandsearch.run.evaluating import examples_each, spare_evaluation
from bandsearch.run.planning import final_steps, make_plan
from bandsearch.values.budget import Budget
from bandsearch.values.errors import BudgetError
from bandsearch.values.plan import Costs, Plan, SharedStep
from bandsearch.values.space import SearchSpace
from bandsearch.values.spec import DataSpec, ModelSpec, RunSpec, TrainSpec


def costs(step: float = 0.1, shared: dict[int, float] | None = None) -> Costs:
    return costs_of(
        step,
        shared_steps=tuple(SharedStep(engines=n, seconds=seconds) for n, seconds in (shared or {}).items()),
        seconds_per_validation=step * 2,
        seconds_per_test_loss=step / 30,
        seconds_per_generation=step / 8,
        load_seconds=15,
        peak_memory_bytes=10**9,
    )


def plan(
    wall: float | None,
    *,
    step: float = 0.1,
    engines: int = 2,
    trials: int | None = None,
    steps: int | None = None,
    shared: dict[int, float] | None = None,
    reading: float | None = None,
) -> Plan:
    measured = costs(step, shared)
    if reading is not None:
        measured = measured.model_copy(update={"seconds_per_validation": reading})
    spec = RunSpec(
        model=ModelSpec(name="demo"),
        data=DataSpec(name="demo:x"),
        train=TrainSpec(steps=steps),
        space=SearchSpace(name="quick"),
        budget=None if wall is None else Budget(seconds=wall, unit="wall"),
        trials=trials,
    )
    return make_plan(
        spec,
        measured,
        train_examples=2000,
        validation_examples=250,
        test_examples=250,
        engines=engines,
        wall_seconds=wall,
        adapter_bytes=10**6,
    )


@settings(deadline=None)
@given(st.floats(30, 1e5), st.floats(0.001, 20), st.integers(1, 8))
def test_the_stages_add_up_to_the_budget_or_it_is_refused(wall: float, step: float, engines: int) -> None:
    try:
        made = plan(wall, step=step, engines=engines)
    except BudgetError as error:
        smallest = Budget.parse(re.search(r"about (\S+)\.$", str(error))[1])
        assert smallest.seconds > wall
    else:
        assert sum(stage.seconds for stage in made.stages) == pytest.approx(wall, rel=0.001)
        assert 0.03 * wall - 1e-6 <= made.seconds_of("probe") <= 0.06 * wall + 1e-6
        assert list(made.rungs) == sorted(set(made.rungs))
        assert made.rungs[-1] <= made.confirm_steps <= made.full_steps
        assert made.full_steps <= 375


@settings(deadline=None)
@given(st.floats(60, 1e5), st.floats(0.01, 5), st.integers(1, 4))
def test_the_confirmation_can_compare_where_that_leaves_the_search_its_share(
    wall: float, step: float, engines: int
) -> None:
    try:
        made = plan(wall, step=step, engines=engines)
    except BudgetError:
        return
    if not made.finalists:
        return
    comparing = math.ceil(5 / engines) * (1.15 * made.confirm_steps + 2) * step
    search, confirm = made.seconds_of("search"), made.seconds_of("confirm")
    assert confirm >= min(comparing, 0.6 * (search + confirm)) - 1e-6
    assert search >= 0.4 * (search + confirm) - 1e-6


@settings(deadline=None)
@given(st.floats(1, 1e4), st.floats(0.001, 5))
@example(1.0, 0.47330923278098674)
def test_the_named_smallest_budget_works(wall: float, step: float) -> None:
    try:
        plan(wall, step=step)
    except BudgetError as error:
        smallest = Budget.parse(re.search(r"about (\S+)\.$", str(error))[1])
        assert plan(smallest.seconds, step=step).full_steps >= 20


def test_a_budget_that_pays_for_no_comparison_trains_full_depth_at_two_rates() -> None:
    made = plan(130, steps=200, engines=1)
    assert (made.finalists, made.final_trainings, made.expected_trials) == (0, 2, 0)
    details = {stage.name: stage.detail for stage in made.stages}
    assert (made.seconds_of("search"), made.seconds_of("confirm")) == (0, 0)
    assert details["retrain"].startswith("full depth at two rates, 200 steps")
    # Winner and baseline are two trainings as well.
    comparing = plan(400, steps=200, engines=1)
    assert comparing.finalists > 0
    assert made.seconds_of("retrain") == pytest.approx(comparing.seconds_of("retrain"))
    assert made.seconds_of("evaluate") < comparing.seconds_of("evaluate")


def test_a_budget_for_one_final_training_is_not_refused_for_the_lack_of_two() -> None:
    with pytest.raises(BudgetError) as refused:
        plan(40, steps=200, engines=1)
    alone = 200 * 0.1 * 1.15 + 8 * 0.2
    assert f"the training itself needs {alone:.0f} s" in str(refused.value)
    smallest = Budget.parse(re.search(r"about (\S+)\.$", str(refused.value))[1]).seconds
    made = plan(smallest, steps=200, engines=1)
    assert (made.compares, made.final_trainings) == (False, 1)
    assert {stage.name: stage.detail for stage in made.stages}["retrain"].startswith("full depth, 200 steps")
    assert smallest < 15 + 2 * alone + 0.2 * smallest


@settings(deadline=None)
@given(st.floats(20, 400), st.floats(0.01, 0.5), st.floats(0, 20), st.integers(1, 3), st.sampled_from([None, 60]))
def test_two_rates_are_planned_where_and_only_where_both_fit(
    wall: float, step: float, reading: float, engines: int, steps: int | None
) -> None:
    """With eight readings each on their way, and one of each at the end."""
    try:
        made = plan(wall, step=step, reading=reading * step, engines=engines, steps=steps)
    except BudgetError:
        return
    if made.compares:
        return
    rounds, seconds = (2 if engines == 1 else 1), reading * step
    left = made.seconds_of("retrain") + made.seconds_of("slack") - (0.01 * wall + 2)

    def both(steps: int) -> float:
        return rounds * (steps * 1.15 * step + 8 * seconds / max(1, engines // 2)) + 2 * seconds

    least = steps or 20
    if made.final_trainings == 2:
        assert least <= made.full_steps <= made.wanted_steps
        assert rounds * (made.full_steps * 1.15 * step + 8 * seconds) + 2 * seconds <= left + 1e-6
    else:
        assert left < both(least) + 1e-6
        assert made.full_steps * 1.15 * step + 8 * seconds / engines <= left + 1e-6


def test_a_longer_budget_buys_more() -> None:
    short, long = plan(300), plan(3000)
    assert long.expected_trials > short.expected_trials > 0
    assert long.full_steps >= short.full_steps
    assert long.confirm_seeds >= short.confirm_seeds >= 2
    assert plan(30_000).finalists > short.finalists >= 4


def test_a_count_of_trials_depends_on_no_clock() -> None:
    slow, fast = plan(None, step=1.0, trials=12), plan(None, step=0.01, trials=12)
    same = {
        "full_steps",
        "rungs",
        "confirm_steps",
        "confirm_seeds",
        "finalists",
        "trial_limit",
        "test_examples",
        "generated_examples",
    }
    assert slow.model_dump(include=same) == fast.model_dump(include=same)
    assert slow.trial_limit == 12


@settings(deadline=None)
@given(st.floats(60, 1e4), st.floats(0.01, 2), st.integers(1, 4), st.integers(1, 2), st.floats(0.5, 5))
def test_what_is_left_lengthens_the_final_training(
    wall: float, step: float, engines: int, arms: int, more: float
) -> None:
    try:
        made = plan(wall, step=step, engines=engines)
    except BudgetError:
        return
    left = more * made.seconds_of("retrain")
    steps = final_steps(made, left, arms)
    assert made.full_steps <= steps <= max(made.full_steps, made.wanted_steps)
    if steps > made.full_steps:
        rounds, reading = -(-arms // engines), made.costs.seconds_per_validation
        assert rounds * (steps * step + 8 * reading) + (2 * reading if arms > 1 else 0) <= left
    assert final_steps(made, left + 10, arms) >= steps


def test_a_final_training_is_longer_where_half_of_the_budget_is_left() -> None:
    made = plan(100)
    assert made.full_steps < made.wanted_steps
    assert final_steps(made, 50, 1) > 2 * made.full_steps
    assert final_steps(made, 50, 1) >= final_steps(made, 50, 2)


@pytest.mark.parametrize(("engines", "share"), [(1, 1 / 3), (2, 1 / 3), (4, 1 / 3), (8, 1 / 2), (16, 0)])
def test_without_a_winner_beside_the_baseline_less_is_evaluated(engines: int, share: float) -> None:
    made = plan(600, engines=engines)
    assert spare_evaluation(made, 1) == pytest.approx(share * made.seconds_of("evaluate"))
    assert spare_evaluation(made, 2) == 0


@given(st.integers(0, 2000), st.integers(1, 16), st.integers(1, 3))
def test_no_engine_scores_more_than_is_planned_and_hardly_less(count: int, engines: int, arms: int) -> None:
    parts = [min(64, count - start) for start in range(0, count, 64) for _ in range(arms)]
    ends = [0] * engines
    for part in parts:
        heapq.heapreplace(ends, ends[0] + part)
    planned = examples_each(count, engines, arms)
    assert max(ends) <= planned <= arms * count / engines + min(64, count)
    assert examples_each(count + 1, engines, arms) >= planned


def test_more_engines_evaluate_in_less_time_what_a_budget_allows() -> None:
    alone, two, eight = (plan(3000, engines=engines) for engines in (1, 2, 8))
    assert alone.test_examples == alone.generated_examples == two.generated_examples == eight.generated_examples == 250
    seconds = [made.seconds_of("evaluate") for made in (alone, two, eight)]
    assert seconds[1] < 0.55 * seconds[0]
    assert seconds[2] < 0.2 * seconds[0]
    assert plan(150, engines=8).generated_examples >= plan(150, engines=1).generated_examples


def test_steps_and_trials_that_were_asked_for_stay() -> None:
    for made in (plan(900, steps=200), plan(None, trials=12), plan(900, trials=12)):
        assert final_steps(made, 1e6, 1) == made.full_steps


def test_steps_that_were_asked_for_are_kept_or_refused() -> None:
    assert plan(900, steps=200).full_steps == 200
    with pytest.raises(BudgetError, match="smallest"):
        plan(60, steps=2000)


def test_what_is_forgotten_is_measured_within_its_share() -> None:
    def evaluated(wall: float) -> tuple[Plan, float]:
        spec = RunSpec(
            model=ModelSpec(name="demo"),
            data=DataSpec(name="demo:x"),
            space=SearchSpace(name="quick"),
            budget=Budget(seconds=wall, unit="wall"),
        )
        dear = costs(0.05).model_copy(update={"seconds_per_retention": 0.5})
        splits = {"train_examples": 500, "validation_examples": 50, "test_examples": 50}
        made, without = (
            make_plan(spec, dear, **splits, retention_texts=texts, engines=1, wall_seconds=wall, adapter_bytes=10**6)
            for texts in (128, 0)
        )
        assert sum(stage.seconds for stage in made.stages) == pytest.approx(wall, rel=0.001)
        return made, made.seconds_of("evaluate") - without.seconds_of("evaluate")

    def confirming(objective: str) -> float:
        spec = RunSpec(
            model=ModelSpec(name="demo"),
            data=DataSpec(name="demo:x"),
            space=SearchSpace(name="quick"),
            trials=12,
            objective=objective,
        )
        dear = costs(0.05).model_copy(update={"seconds_per_retention": 0.5})
        splits = {"train_examples": 500, "validation_examples": 50, "test_examples": 50}
        made = make_plan(spec, dear, **splits, retention_texts=10, engines=1, wall_seconds=None, adapter_bytes=10**6)
        return made.seconds_of("confirm")

    # With `loss` on none, since even ten take more than a little of a training.
    # Ten texts of half a second after each of two seeds of three finalists, full depth twice and three other baselines.
    assert confirming("retention") - confirming("loss") == pytest.approx(1.15 * 2 * 8 * 10 * 0.5)
    short, seconds = evaluated(300)
    assert 0 < short.retention_texts < 10
    assert seconds <= 0.02 * 300 * 1.15 + 1e-6
    assert evaluated(36_000)[0].retention_texts == 128


@settings(deadline=None)
@given(st.floats(30, 1e5), st.floats(0.001, 20), st.integers(1, 8))
def test_a_budget_too_small_to_search_in_is_told_what_would_do(wall: float, step: float, engines: int) -> None:
    try:
        made = plan(wall, step=step, engines=engines)
    except BudgetError:
        return
    spec = RunSpec(
        model=ModelSpec(name="demo"),
        data=DataSpec(name="demo:x"),
        space=SearchSpace(name="quick"),
        budget=Budget(seconds=wall, unit="wall"),
    )

    def advised(seconds: float) -> Plan:
        one = plan(seconds, step=step, engines=engines)
        return with_advice(one, spec, lambda other: plan(other, step=step, engines=engines))

    told = advised(wall)
    assert told == made.model_copy(update={"advice": told.advice})
    if not told.advice:
        assert made.expected_trials >= 10
        return
    enough = Budget.parse(re.search(r"About (\S+) would", told.advice)[1])
    assert wall < enough.seconds
    assert advised(enough.seconds).advice == ""


def test_engines_that_train_together_make_the_final_training_shorter_and_the_search_longer() -> None:
    alone, together = (plan(3600, step=1.0, engines=8, steps=300, shared=shared) for shared in (None, {4: 0.3}))
    validations, compared = 8 * 2.0, 2 * 2.0
    assert alone.seconds_of("retrain") == pytest.approx(300 * 1.0 * 1.15 + validations + compared)
    assert together.seconds_of("retrain") == pytest.approx(300 * 0.3 * 1.15 + validations / 4 + compared)
    assert together.expected_trials > alone.expected_trials
    assert "each on 4 engines together" in {stage.name: stage for stage in together.stages}["retrain"].detail


def test_more_engines_than_pay_are_not_taken() -> None:
    made = plan(3600, step=1.0, engines=8, steps=300, shared={4: 1.2, 8: 0.9})
    assert made.seconds_of("retrain") == pytest.approx(300 * 1.0 * 1.15 + 8 * 2.0 + 2 * 2.0)
    # The baseline alone has all of them.
    assert made.costs.step_on(8) == SharedStep(engines=8, seconds=0.9)


def test_a_single_arm_is_longer_where_all_engines_share_it() -> None:
    made = plan(900, step=1.0, engines=2, shared={2: 0.5})
    assert final_steps(made, 300, 2) < 1.1 * 300 / 1.15
    assert final_steps(made, 300, 1) > 1.5 * final_steps(made, 300, 2)


def test_a_run_that_a_seed_decides_shares_no_steps() -> None:
    assert plan(None, trials=5, engines=4, shared={2: 0.05}).costs.shared_steps == ()


def test_a_long_training_leaves_enough_candidates_to_search_among() -> None:
    """In eight hours, at rungs of a twenty-seventh of so long a training, a dozen were tried, the sampler's none."""
    made = plan(8 * 3600, step=1.0, engines=1, steps=3375)
    assert made.expected_trials >= 35
    assert made.rungs[0] >= 30
    assert made.confirm_steps >= made.full_steps / 4


def test_epochs_that_are_not_reached_take_a_quarter_of_the_training_and_shorten_the_search_little() -> None:
    """At an eighth, eight hours trained 1.2 of 3 epochs."""
    made, enough = (plan(wall, step=1.0, engines=1) for wall in (2400, 10_000))
    assert made.full_steps < made.wanted_steps == enough.full_steps
    training = sum(made.seconds_of(stage) for stage in ("search", "confirm", "retrain"))
    assert made.seconds_of("retrain") == pytest.approx(0.25 * training, rel=0.1)
    assert enough.seconds_of("retrain") < 0.25 * 10_000


@settings(deadline=None)
@given(st.floats(60, 1e5), st.floats(0.01, 5), st.integers(1, 8), st.sampled_from([None, 300, 3000]))
def test_finalists_are_confirmed_at_a_quarter_of_the_final_length_or_more(
    wall: float, step: float, engines: int, steps: int | None
) -> None:
    try:
        made = plan(wall, step=step, engines=engines, steps=steps)
    except BudgetError:
        return
    assert made.full_steps // 4 <= made.confirm_steps <= made.full_steps


@settings(deadline=None)
@given(st.floats(60, 1e5), st.floats(0.001, 5), st.integers(0, 128), st.integers(1, 4))
def test_what_finalists_forget_is_read_where_that_takes_little_of_their_training(
    wall: float, each: float, texts: int, engines: int
) -> None:
    spec = RunSpec(
        model=ModelSpec(name="demo"),
        data=DataSpec(name="demo:x"),
        space=SearchSpace(name="quick"),
        budget=Budget(seconds=wall, unit="wall"),
    )
    reading = costs(0.1).model_copy(update={"seconds_per_retention": each})
    splits = {"train_examples": 2000, "validation_examples": 250, "test_examples": 250}
    try:
        made = make_plan(
            spec, reading, **splits, retention_texts=texts, engines=engines, wall_seconds=wall, adapter_bytes=10**6
        )
    except BudgetError:
        return
    assert sum(stage.seconds for stage in made.stages) == pytest.approx(wall, rel=0.001)
    read, allowed = made.confirm_texts, 0.05 * 0.1 * made.confirm_steps
    assert read <= min(32, made.retention_texts)
    assert read * each <= allowed + 1e-9
    # Where there are enough of them and they are cheap enough, they are read; a few are read only where there are few.
    assert (read > 0) == (made.retention_texts > 0 and min(16, made.retention_texts) * each <= allowed)
    words = f"{read} texts for forgetting"
    assert (words in next(stage.detail for stage in made.stages if stage.name == "confirm")) == (read > 0)


def test_finalists_go_on_to_be_read_on_as_many_texts() -> None:
    reading = costs(0.1).model_copy(update={"seconds_per_retention": 0.5})
    sizes = {"train_examples": 2000, "validation_examples": 250, "test_examples": 250, "retention_texts": 128}

    def made(wall: float, **known: object) -> Plan:
        spec = RunSpec(
            model=ModelSpec(name="demo"),
            data=DataSpec(name="demo:x"),
            space=SearchSpace(name="quick"),
            budget=Budget(seconds=wall, unit="wall"),
            objective="retention",
        )
        return make_plan(spec, reading, **sizes, engines=1, wall_seconds=wall, adapter_bytes=10**6, **known)

    begun = made(600)
    larger = made(3000, known=begun, confirming=True)
    assert 0 < begun.confirm_texts < made(3000).confirm_texts
    assert (larger.confirm_steps, larger.confirm_texts) == (begun.confirm_steps, begun.confirm_texts)
    assert larger.retention_texts > begun.retention_texts


@settings(deadline=None)
@given(st.floats(300, 1e5), st.floats(0.01, 5), st.integers(1, 4))
def test_the_search_has_time_for_the_candidates_that_it_expects(wall: float, step: float, engines: int) -> None:
    """Counted by hand: all train to the first rung, and a third of those at a rung to the next at least."""
    try:
        made = plan(wall, step=step, engines=engines)
    except BudgetError:
        return
    if not made.compares:
        return
    steps, there, before = 0.0, float(made.expected_trials), 0
    for rung in made.rungs:
        steps, there, before = steps + there * (rung - before), there / 3, rung
    assert steps * step / engines <= made.seconds_of("search")


def test_the_plan_says_how_much_of_what_was_asked_for_is_trained() -> None:
    stages = {stage.name: stage.detail for stage in plan(150).stages}
    assert re.search(r"\d+ of 375 steps, more if time is left", stages["retrain"])
    assert "full depth at two rates" in stages["confirm"]
    assert "375 steps" in {stage.name: stage.detail for stage in plan(30_000).stages}["retrain"]
