"""The summary: what the replays say about the goals, per task and as medians over tasks."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

from scipy import stats

from bandsearch.values.evaluation import Choice
from bandsearch.values.value import Value
from benchmarks.bandbench.arms import ARMS
from benchmarks.bandbench.replay import (
    JUDGED,
    LADDER,
    MISLED,
    NULL,
    OURS,
    SECOND,
    VARIANTS,
    Played,
    Step,
    at,
    headline,
    reached,
)
from benchmarks.bandbench.table import Table

# At these shares of the table's cost the curves are read.
GRID = (*LADDER, 1 / 5)
OPTUNA, RANDOM, FULL_DEPTH = ("Optuna TPE", "Optuna GP"), "random search", "full depth"
# Of these None is no long time but no merit: bandsearch itself was never there, or nobody else was played.
MERITS = (
    "speedup_vs_optuna",
    "speedup_vs_random",
    "speedup_vs_full_depth",
    "most_vs_optuna",
    "most_vs_random",
    "lean_speedup_vs_optuna",
    "lean_speedup_vs_random",
)
# Lean is what has at most this share of the parameters of full depth at the habit's rank.
LEAN = 0.5
Spread = tuple[float | None, float | None, float | None]


class ArmFigures(Value):
    """One arm on one task. `share_reached`: of the replays, whose hand-over came to stay within seed noise of the
    optimum. `seconds`: when (10 %, median, 90 %; None where not in sight); `lean_seconds`: with at most half of full
    depth's parameters (median). `curve`: regret in nats at GRID, likewise.
    `horizon`: device seconds for which the two were judged, for all arms as long as for bandsearch. Of bandsearch
    `regret` and `parameters` are those of its reported budget, of the others those at the horizon.
    """

    replays: int
    share_reached: float
    seconds: Spread
    lean_seconds: float | None
    horizon: float
    regret: float | None
    parameters: float | None
    curve: tuple[Spread, ...]


class Handed(Value):
    """What bandsearch handed over at one budget: medians over replays, regret in nats; how often it decided how, and
    the share of replays in which it is worse than tuned full depth by more than an SD."""

    choices: dict[str, int]
    regret: float
    parameters: float
    worse: float


class TaskFigures(Value):
    """`optimum`: of bands, in two pieces too where the table has such; `best_band`: in one piece; `smallest`: of the
    fewest parameters, not worse than tuned full depth by more than an SD.

    `speedup_*` are ratios of median times, None where bandsearch never got there; where the other arm was not there by
    its horizon, that stands for it (`speedups_at_least`). `most_*`: the same of whoever knows the cheapest candidate
    within seed noise of the optimum and trains nothing else. `lean_*`: the same with at most half of full depth's
    parameters, which full depth never has. Full depth is tuned and needs no search.
    `second_task_cost` and `misled_cost` are the time to the optimum with such an atlas, as a share of that without;
    None where one of them never got there. Regrets are those at the reported budget. `handed` is by budget, and
    `worse_than_full_depth_rate` that of the budget up to 1/25 at which it is highest.
    """

    task: str
    control: bool
    exhaustive_seconds: float
    noise: float
    optimum: str
    optimum_parameters: float
    best_band: str
    best_band_regret: float
    smallest: str
    smallest_parameters: float
    best_set: str | None
    best_set_gain_in_seed_sd: float | None
    full_depth_regret: float
    edge_share: float
    arms: dict[str, ArmFigures]
    handed: dict[str, Handed]
    cost_fraction_of_exhaustive: float | None
    speedup_vs_optuna: float | None
    speedup_vs_random: float | None
    speedup_vs_full_depth: float | None
    speedups_at_least: tuple[str, ...]
    most_vs_optuna: float | None
    most_vs_random: float | None
    lean_cost_fraction: float | None
    lean_speedup_vs_optuna: float | None
    lean_speedup_vs_random: float | None
    median_regret_in_seed_sd: float | None
    parameter_fraction_of_full: float | None
    worse_than_full_depth_rate: float | None
    second_task_cost: float | None
    second_task_lean_cost: float | None
    second_task_regret_in_seed_sd: float | None
    misled_cost: float | None
    misled_regret_in_seed_sd: float | None


class Summary(Value):
    """`false_win_*` are None without a control task. Medians are over the tasks that are no control."""

    tasks: tuple[TaskFigures, ...]
    false_wins: int
    false_win_replays: int

    @property
    def false_win_rate(self) -> float | None:
        return self.false_wins / self.false_win_replays if self.false_win_replays else None

    @property
    def false_win_interval(self) -> tuple[float, float] | None:
        """Exact, 95 %."""
        if not self.false_win_replays:
            return None
        found = stats.binomtest(self.false_wins, self.false_win_replays).proportion_ci(0.95)
        return float(found.low), float(found.high)

    def median(self, name: str) -> float | None:
        """Where a task has no figure it counts as the worst one."""
        values = (getattr(task, name) for task in self.tasks if not task.control)
        return median(values, 0.0 if name in MERITS else math.inf)

    def line(self) -> str:
        names = (
            "cost_fraction_of_exhaustive",
            "speedup_vs_optuna",
            "speedup_vs_random",
            "speedup_vs_full_depth",
            "most_vs_optuna",
            "most_vs_random",
            "lean_cost_fraction",
            "lean_speedup_vs_optuna",
            "lean_speedup_vs_random",
            "median_regret_in_seed_sd",
            "parameter_fraction_of_full",
            "worse_than_full_depth_rate",
            "second_task_cost",
            "second_task_lean_cost",
            "second_task_regret_in_seed_sd",
            "misled_cost",
            "misled_regret_in_seed_sd",
        )
        figures: dict[str, object] = {name: _short(self.median(name)) for name in names}
        figures["false_win_rate"] = _short(self.false_win_rate)
        figures["false_win_replays"] = self.false_win_replays
        figures["tasks"] = {
            task.task: {name: _short(getattr(task, name)) for name in names}
            | {"speedups_at_least": task.speedups_at_least, "replays": task.arms[OURS].replays}
            for task in self.tasks
        }
        return json.dumps(figures, allow_nan=False)


def summarize(tables: Mapping[str, Table], played: Sequence[Played]) -> Summary:
    """Without the tasks that there was no time to replay."""
    null = [each.steps[-1].choice for each in played if each.arm == NULL and each.steps]
    by_task = {task: [each for each in played if each.task == task] for task in tables}
    return Summary(
        tasks=tuple(
            _task(tables[task], runs) for task, runs in by_task.items() if any(each.arm == OURS for each in runs)
        ),
        false_wins=sum(choice == Choice.BEATS_BASELINE for choice in null),
        false_win_replays=len(null),
    )


def _task(table: Table, played: Sequence[Played]) -> TaskFigures:
    arms = {
        arm: _arm(table, runs)
        for arm in (OURS, SECOND, MISLED, *VARIANTS, *ARMS)
        if (runs := [each for each in played if each.arm == arm])
    }
    ours = arms[OURS]
    mine = ours.seconds[1]
    at_least: list[str] = []

    def speedup(name: str, others: Sequence[str], after: float | None, lean: bool = False) -> float | None:
        """Against the soonest of `others`."""
        known = [arms[other] for other in others if other in arms]
        if after is None or not known:
            return None
        times = [time for arm in known if (time := arm.lean_seconds if lean else arm.seconds[1]) is not None]
        if not times:
            at_least.append(name)
        return (min(times) if times else max(arm.horizon for arm in known)) / after

    def against_ours(name: str, lean: bool = False) -> float | None:
        if name not in arms:
            return None
        theirs = arms[name].lean_seconds if lean else arms[name].seconds[1]
        most = LEAN * table.habit_parameters if lean else math.inf
        own = median(reached(each, table, arms[name].horizon, most) for each in played if each.arm == OURS)
        return None if theirs is None or own is None else theirs / own

    def regret_in_sd(name: str) -> float | None:
        known = arms[name].regret if name in arms else None
        return None if known is None or not table.noise else known / table.noise

    handed = _handed(table, played)
    least = _least_seconds(table)
    ratios = {
        "speedup_vs_optuna": speedup("speedup_vs_optuna", OPTUNA, mine),
        "speedup_vs_random": speedup("speedup_vs_random", (RANDOM,), mine),
        "speedup_vs_full_depth": speedup("speedup_vs_full_depth", (FULL_DEPTH,), mine),
        "most_vs_optuna": speedup("most_vs_optuna", OPTUNA, least),
        "most_vs_random": speedup("most_vs_random", (RANDOM,), least),
        "lean_speedup_vs_optuna": speedup("lean_speedup_vs_optuna", OPTUNA, ours.lean_seconds, lean=True),
        "lean_speedup_vs_random": speedup("lean_speedup_vs_random", (RANDOM,), ours.lean_seconds, lean=True),
    }
    return TaskFigures(
        task=table.header.task,
        control=table.header.control,
        exhaustive_seconds=table.exhaustive_seconds,
        noise=table.noise,
        optimum=str(table.options[table.optimum].candidate),
        optimum_parameters=table.options[table.optimum].parameters / table.habit_parameters,
        best_band=str(table.options[table.best_band].candidate),
        best_band_regret=table.regret(table.best_band),
        smallest=str(table.options[table.smallest].candidate),
        smallest_parameters=table.options[table.smallest].parameters / table.habit_parameters,
        best_set=None if table.best_set is None else str(table.options[table.best_set].candidate),
        best_set_gain_in_seed_sd=(
            None
            if table.best_set is None or not table.noise
            else float(table.full[table.optimum] - table.full[table.best_set]) / table.noise
        ),
        full_depth_regret=table.regret(table.full_depth),
        edge_share=table.edge_share,
        arms=arms,
        handed=handed,
        cost_fraction_of_exhaustive=None if mine is None else mine / table.exhaustive_seconds,
        **ratios,
        lean_cost_fraction=None if ours.lean_seconds is None else ours.lean_seconds / table.exhaustive_seconds,
        speedups_at_least=tuple(at_least),
        median_regret_in_seed_sd=regret_in_sd(OURS),
        parameter_fraction_of_full=ours.parameters,
        worse_than_full_depth_rate=max(
            (handed[name].worse for share in LADDER if share <= JUDGED and (name := _named(share)) in handed),
            default=None,
        ),
        second_task_cost=against_ours(SECOND),
        second_task_lean_cost=against_ours(SECOND, lean=True),
        second_task_regret_in_seed_sd=regret_in_sd(SECOND),
        misled_cost=against_ours(MISLED),
        misled_regret_in_seed_sd=regret_in_sd(MISLED),
    )


def _least_seconds(table: Table) -> float:
    """Of one full training of the cheapest entry that is within seed noise of the optimum."""
    alike = [i for i in table.searchable if table.full[i] <= table.full[table.optimum] + table.noise]
    return min(table.seconds(index, table.header.full_steps) for index in alike)


def _arm(table: Table, runs: Sequence[Played]) -> ArmFigures:
    horizon = min(JUDGED * table.exhaustive_seconds, *(run.horizon for run in runs))
    times = [reached(run, table, horizon) for run in runs]
    last = [headline(run, horizon) for run in runs]
    curve = []
    for share in GRID:
        seconds = share * table.exhaustive_seconds
        within = [run for run in runs if seconds <= run.horizon * (1 + 1e-9)]
        curve.append(_spread(_regret(table, at(run, seconds)) for run in within))
    return ArmFigures(
        replays=len(runs),
        share_reached=sum(time is not None for time in times) / len(times),
        seconds=_spread(times),
        lean_seconds=median(reached(run, table, horizon, LEAN * table.habit_parameters) for run in runs),
        horizon=horizon,
        regret=median(_regret(table, step) for step in last),
        parameters=median(
            None if step is None else table.options[step.option].parameters / table.habit_parameters for step in last
        ),
        curve=tuple(curve),
    )


def _regret(table: Table, step: Step | None) -> float | None:
    return None if step is None else table.regret(step.option)


def _handed(table: Table, played: Sequence[Played]) -> dict[str, Handed]:
    """By share of the table's cost."""
    found: dict[str, Handed] = {}
    bound = float(table.full[table.full_depth]) + table.noise
    for share in LADDER:
        steps = [step for each in played if each.arm == OURS for step in each.steps if step.budget == share]
        if steps:
            kinds = [step.choice for step in steps]
            found[_named(share)] = Handed(
                choices={kind: kinds.count(kind) for kind in sorted(set(kinds))},
                regret=statistics.median(table.regret(step.option) for step in steps),
                parameters=statistics.median(table.options[step.option].parameters for step in steps)
                / table.habit_parameters,
                worse=statistics.mean(float(table.full[step.option] > bound) for step in steps),
            )
    return found


def _named(share: float) -> str:
    return f"1/{1 / share:.0f}"


def median(values: Iterable[float | None], missing: float = math.inf) -> float | None:
    """With None for `missing`; None if the median is infinite, or there are no values."""
    return _spread(values, missing)[1]


def _spread(values: Iterable[float | None], missing: float = math.inf) -> Spread:
    """The 10 %, 50 % and 90 % quantiles, of an even number of values the median of the middle two."""
    ordered = sorted(missing if value is None else value for value in values)
    if not ordered:
        return None, None, None
    last = len(ordered) - 1
    found = (ordered[round(0.1 * last)], statistics.median(ordered), ordered[round(0.9 * last)])
    low, middle, high = (None if math.isinf(value) else value for value in found)
    return low, middle, high


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
