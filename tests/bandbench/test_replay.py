"""Searches played on planted tables, and what is said about them."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
import sys
from pathlib import Path

import pytest
from planted import PLANTED, flat, table
from scipy import stats

from bandsearch.values.evaluation import Choice
from bandsearch.values.profile import RateRange
from benchmarks.bandbench import __main__ as command
from benchmarks.bandbench import replay
from benchmarks.bandbench.arms import ARMS, most_stable
from benchmarks.bandbench.ours import bandsearch
from benchmarks.bandbench.page import page
from benchmarks.bandbench.replay import (
    FEW,
    HEADLINE,
    LADDER,
    MISLED,
    NULL,
    OURS,
    SECOND,
    Played,
    Step,
    at,
    headline,
    play,
    reached,
)
from benchmarks.bandbench.rungs import rung_signals
from benchmarks.bandbench.signals import band_signals
from benchmarks.bandbench.space import code_of
from benchmarks.bandbench.summary import GRID, median, summarize
from benchmarks.bandbench.table import Table
from benchmarks.bandbench.world import World

REPLAYS = 6


@pytest.fixture(scope="module")
def fair() -> Table:
    """Short trainings rank bands as full ones do."""
    return table(haste=0.0, noise=0.005)


@pytest.fixture(scope="module")
def ours(fair: Table) -> list[Played]:
    return [play(fair, OURS, FEW + seed) for seed in range(REPLAYS)]


def test_bandsearch_finds_the_planted_band(fair: Table, ours: list[Played]) -> None:
    found = [fair.options[each.steps[-1].option].entry for each in ours]
    assert sum(entry.bands == (PLANTED,) for entry in found) > REPLAYS / 2
    assert statistics.median(fair.regret(each.steps[-1].option) for each in ours) <= fair.noise
    for each in ours:
        budgets = [step.budget for step in each.steps]
        assert budgets == sorted(budgets)
        assert all(step.seconds <= step.budget * fair.exhaustive_seconds for step in each.steps)


def test_random_search_takes_longer(fair: Table, ours: list[Played]) -> None:
    others = [play(fair, "random search", seed) for seed in range(20)]

    def when(played: list[Played]) -> float:
        times = [reached(each, fair) for each in played]
        return statistics.median(math.inf if time is None else time for time in times)

    assert when(ours) < 0.5 * when(others)


def test_where_no_band_is_better_wins_are_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "NULL_BUDGET", 1 / 40)
    made = table(flat, task="toss")
    choices = [play(made, NULL, seed).steps[-1].choice for seed in range(40)]
    wins = choices.count(Choice.BEATS_BASELINE)
    assert wins <= stats.binom.ppf(0.99, 40, 0.05)


def test_what_is_handed_over_is_paid_for(fair: Table, ours: list[Played]) -> None:
    """Nobody has full depth sooner than who trains it and nothing else."""
    (first, *_) = play(fair, "full depth", 0).steps
    full = fair.seconds(fair.full_depth, fair.header.full_steps)
    assert first.seconds == pytest.approx(full)
    for step in (step for each in ours for step in each.steps):
        trained = fair.seconds(step.option, fair.header.full_steps)
        assert step.seconds > (fair.profile.seconds + trained) * (1 - 1e-9)
        if len(fair.options[step.option].entry.layers) < fair.layer_count:
            assert step.seconds > fair.profile.seconds + trained + 0.9 * full


def test_a_search_may_go_by_the_rates_that_its_probe_found(fair: Table) -> None:
    rates = {option.candidate.learning_rate for option in fair.options}
    assert len(rates) == 3
    for place, rate in enumerate(sorted(rates)):
        found = RateRange(low=rate * 0.99, best=rate, high=rate * 1.01)
        code = code_of(fair, found)
        assert code.rates == pytest.approx((rate * 0.99, rate * 1.01)), place
        profile = fair.profile.model_copy(update={"rate_range": found})
        only = dataclasses.replace(fair, profile=profile)
        handed = bandsearch(World(only, 0), HEADLINE * fair.exhaustive_seconds, own_rates=True)
        assert handed is not None
        assert fair.options[handed.option].candidate.learning_rate == rate
    assert code_of(fair, RateRange(low=1e-6, best=1e-5, high=1e-4)).rates == pytest.approx((0.004 / 2.5**0.5,) * 2)


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_gets_better_by_what_it_sees_and_repeats_itself(fair: Table, arm: str) -> None:
    played = play(fair, arm, 1)
    assert played.steps
    assert [step.seconds for step in played.steps] == sorted(step.seconds for step in played.steps)
    assert play(fair, arm, 1) == played
    if arm not in ("Optuna GP", "most stable layers"):
        assert fair.regret(played.steps[-1].option) < fair.regret(fair.full_depth) + 2 * fair.noise


def test_the_most_stable_layers_are_those_of_the_highest_cka(fair: Table) -> None:
    assert most_stable(fair).layers == range(6)


def test_the_largest_budget_is_played_less_often_and_judges_nothing(fair: Table) -> None:
    good, bad, whole = fair.optimum, fair.full_depth, fair.exhaustive_seconds

    def run(seed: int, *ladder: tuple[float, int]) -> Played:
        steps = tuple(Step(seconds=b * whole, option=each, budget=b, choice="baseline") for b, each in ladder)
        return Played(task="two_step", arm=OURS, seed=seed, horizon=ladder[-1][0] * whole, steps=steps)

    long, short = run(0, (1 / 50, bad), (1 / 25, bad), (1 / 10, good)), run(1, (1 / 50, bad), (1 / 25, bad))
    (task,) = summarize({"two_step": fair}, [long, short]).tasks
    curve = dict(zip(GRID, task.arms[OURS].curve, strict=True))
    assert curve[1 / 25][1] == pytest.approx(fair.regret(bad))
    assert curve[1 / 10] == (0.0, 0.0, 0.0)
    assert curve[1 / 5] == (None, None, None)
    assert task.arms[OURS].share_reached == 0
    assert task.handed["1/10"].regret == 0
    assert play(fair, OURS, FEW).horizon == pytest.approx(whole / 25)
    # Beyond what is judged the others are played as seldom.
    assert play(fair, "random search", FEW).horizon == pytest.approx(whole / 25)
    assert play(fair, "random search", FEW - 1).horizon == pytest.approx(whole / 5)


def test_reached_is_when_it_comes_to_stay(fair: Table) -> None:
    good, bad = fair.optimum, fair.full_depth

    def played(*options: int) -> Played:
        steps = tuple(Step(seconds=10.0 * (place + 1), option=option) for place, option in enumerate(options))
        return Played(task="two_step", arm="ASHA", seed=0, horizon=100, steps=steps)

    assert reached(played(bad, good, good), fair) == 20
    assert reached(played(good, bad, good), fair) == 30
    assert reached(played(good, bad), fair) is None
    assert reached(played(), fair) is None
    assert at(played(bad, good), 5) is None
    assert at(played(bad, good), 19) == Step(seconds=10, option=bad)


def test_rungs_and_signals_tell_within_equal_width(fair: Table) -> None:
    early, late = rung_signals(fair)
    assert early.within_width is not None
    assert late.overall is not None
    assert late.overall > 0.9
    hasty = rung_signals(table(haste=8.0))[0]
    assert hasty.within_classes is not None
    assert early.within_classes is not None
    assert hasty.within_classes < early.within_classes
    by_name = {each.signal: each for each in band_signals(fair)}
    assert by_name["width"].within_width is None
    seeing, blind = by_name["gradient, normalised"], by_name["gradient, raw"]
    assert seeing.within_width is not None
    assert blind.within_width is not None
    assert seeing.within_width > 0.5 > blind.within_width
    assert seeing.regret >= 0


def test_the_last_line_has_the_goals(fair: Table, ours: list[Played]) -> None:
    control = table(flat, task="toss")
    tables = {"two_step": fair, "toss": control}
    played = [*ours, *(play(fair, arm, 0) for arm in ("random search", "Optuna TPE", "full depth"))]
    played += [play(control, arm, 0) for arm in (OURS, NULL, "ASHA")]
    summary = summarize(tables, played)
    line = json.loads(summary.line())
    wanted = {
        "cost_fraction_of_exhaustive",
        "speedup_vs_optuna",
        "speedup_vs_random",
        "false_win_rate",
        "median_regret_in_seed_sd",
        "parameter_fraction_of_full",
    }
    assert wanted <= line.keys()
    assert line["tasks"].keys() == tables.keys()
    assert wanted - {"false_win_rate"} <= line["tasks"]["two_step"].keys()
    assert line["cost_fraction_of_exhaustive"] == line["tasks"]["two_step"]["cost_fraction_of_exhaustive"]
    assert 0 < line["cost_fraction_of_exhaustive"] <= LADDER[-1]
    assert line["false_win_replays"] == 1
    figures = next(task for task in summary.tasks if task.task == "two_step")
    # Full depth has never at most half of full depth's parameters, which the planted band has.
    assert figures.arms["full depth"].lean_seconds is None
    assert figures.lean_cost_fraction is not None
    assert figures.cost_fraction_of_exhaustive is not None
    assert figures.lean_cost_fraction >= figures.cost_fraction_of_exhaustive
    text = page(summary, tables, 1.0)
    assert "two_step" in text
    assert "False wins" in text
    assert headline(played[0], math.inf) in played[0].steps
    rival = next(each for each in played if each.arm == "random search")
    assert headline(rival, rival.steps[0].seconds) == rival.steps[0]
    assert [task.task for task in summarize(tables, ours).tasks] == ["two_step"]


def test_never_in_sight_counts_as_longer_than_anything() -> None:
    assert median([1.0, None, 2.0]) == 2.0
    assert median([1.0, None, None]) is None
    assert median([]) is None


def test_a_task_that_we_never_solve_is_no_point_in_our_favour(fair: Table, ours: list[Played]) -> None:
    rival = [play(fair, "random search", seed) for seed in range(3)]
    blind = [each.model_copy(update={"task": "swap", "steps": ()}) for each in ours]
    played = [*ours, *rival, *blind, *(each.model_copy(update={"task": "swap"}) for each in rival)]
    summary = summarize({"two_step": fair, "swap": fair}, played)
    solved, unsolved = summary.tasks
    assert unsolved.speedup_vs_random is None
    assert solved.speedup_vs_random is not None
    assert solved.most_vs_random is not None
    assert solved.most_vs_random > solved.speedup_vs_random
    assert summary.median("speedup_vs_random") == solved.speedup_vs_random / 2
    assert summary.median("cost_fraction_of_exhaustive") is None


def test_without_a_table_one_sentence_says_how_to_build_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bandbench", "summary", "--out", str(tmp_path)])
    assert command.main() == 2
    told = capsys.readouterr()
    assert not told.out
    assert len(told.err.strip().splitlines()) == 1
    assert "make bandbench" in told.err


def test_a_right_record_helps_and_a_wrong_one_costs_little(fair: Table, ours: list[Played]) -> None:
    def regret(played: list[Played]) -> float:
        return statistics.mean(
            fair.regret(step.option) for each in played for step in each.steps if step.budget == HEADLINE
        )

    right = [play(fair, SECOND, FEW + seed, other=fair) for seed in range(REPLAYS)]
    wrong = [play(fair, MISLED, FEW + seed) for seed in range(REPLAYS)]
    assert regret(right) < 0.7 * regret(ours)
    assert regret(wrong) < 1.5 * regret(ours)
