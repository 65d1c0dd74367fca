"""The summary as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from benchmarks.bandbench.measured import Measured
from benchmarks.bandbench.replay import DEAREST, FEW, HEADLINE, JUDGED, NULL_BUDGET, OURS
from benchmarks.bandbench.rungs import rung_signals
from benchmarks.bandbench.signals import TOP, band_signals, held_out, ranking
from benchmarks.bandbench.summary import GRID, Spread, Summary, TaskFigures
from benchmarks.bandbench.table import Table

NOTHING = "–"
WORSE = "worse_than_full_depth_rate"


def page(
    summary: Summary, tables: Mapping[str, Table], seconds: float, measured: Mapping[str, Measured] | None = None
) -> str:
    measured = measured or {}
    parts = [
        "# bandbench",
        "Searches replayed on exhaustive tables of the demo tasks. `make bandbench` builds the tables, `make "
        f"bandbench-summary` wrote this page in {seconds:.0f} s. *SD* is the standard deviation over seeds of the loss "
        "of full trainings (the median over entries), without those that break off; *regret* is what the "
        "handed-over candidate's mean full loss lies above the best one's; "
        "*reached* is when it came to stay within one SD. Intervals are from the 10 % to the 90 % quantile over "
        f"replays, of which {DEAREST} and all that lies beyond 1/{1 / JUDGED:.0f} have {FEW} at most. Time is "
        "that of one device, as a share of what the table cost.",
        "## Goals\n\n" + _goals(summary),
        "## Tables\n\n" + _tables(summary, tables),
        _over_tasks(tables, measured),
        *(_task(task, tables[task.task], measured.get(task.task)) for task in summary.tasks),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _goals(summary: Summary) -> str:
    rows: list[tuple[str, str]] = [
        ("cost of reaching the optimum, share of the table's (goal: ≤ 1/50)", "cost_fraction_of_exhaustive"),
        ("times sooner than Optuna from scratch (goal: ≥ 10)", "speedup_vs_optuna"),
        ("times sooner than random search (goal: ≥ 10)", "speedup_vs_random"),
        ("times sooner than Optuna, one training of the cheapest that is as good as the best", "most_vs_optuna"),
        ("times sooner than random search, the same", "most_vs_random"),
        ("times sooner than tuned full depth by itself", "speedup_vs_full_depth"),
        ("with half of full depth's parameters at most: cost of reaching the optimum", "lean_cost_fraction"),
        ("with half at most: times sooner than Optuna", "lean_speedup_vs_optuna"),
        ("with half at most: times sooner than random search", "lean_speedup_vs_random"),
        (f"regret at a budget of 1/{1 / HEADLINE:.0f}, in SD", "median_regret_in_seed_sd"),
        (f"parameters at a budget of 1/{1 / HEADLINE:.0f}, share of full depth", "parameter_fraction_of_full"),
        (
            "worse than tuned full depth by an SD, share of runs, at the worst budget up to 1/25 (goal: 0)",
            WORSE,
        ),
        ("second task on a known model: time to the optimum, share of the first's (goal: < 1/2)", "second_task_cost"),
        ("its regret, in SD", "second_task_regret_in_seed_sd"),
        ("with half of the parameters at most: its time, share of the first's", "second_task_lean_cost"),
        ("with a record of the worst band: time to the optimum, share of that without", "misled_cost"),
        ("its regret, in SD", "misled_regret_in_seed_sd"),
    ]
    head = ["", "median", *(f"{task.task}{' (control)' if task.control else ''}" for task in summary.tasks)]
    body = [
        [words, _figure(summary.median(name)), *(_goal(task, name) for task in summary.tasks)] for words, name in rows
    ]
    interval = summary.false_win_interval
    if interval is None:
        wins = "False wins are unmeasured: there is no table of a control task."
    else:
        wins = (
            f"False wins where no band is better than full depth: {summary.false_wins} of {summary.false_win_replays} "
            f"replays at a budget of 1/{1 / NULL_BUDGET:.0f} (95 %: {interval[0]:.1%} to {interval[1]:.1%}; goal: "
            "≤ 5 %). In these, no full loss of the control table is below that of its best full-depth candidate."
        )
    return (
        f"{_table(head, body)}\n\nMedians are over the tasks that are no control; {NOTHING}: not in sight of half of "
        "the replays, which counts as longer than any other, and as no times sooner. ≥: the other arm was not there "
        f"when it was last looked at.\n\n{wins}"
    )


def _goal(task: TaskFigures, name: str) -> str:
    figure = _figure(getattr(task, name))
    return f"≥ {figure}" if name in task.speedups_at_least else figure


def _tables(summary: Summary, tables: Mapping[str, Table]) -> str:
    head = ["", "entries", "on all seeds", "device hours", "SD, nats", "the best", "its parameters"]
    head += ["full depth, regret", "the best in one piece", "its regret", "the smallest as good as full depth"]
    head += ["its parameters", "the best random set", "its gain on the best", "rates at the edge"]
    body = []
    for task in summary.tasks:
        options = [tables[task.task].options[index] for index in tables[task.task].own]
        most = max(option.seeds for option in options)
        body.append(
            [
                task.task,
                str(len(options)),
                f"{sum(option.seeds == most for option in options)} on {most}",
                f"{task.exhaustive_seconds / 3600:.2f}",
                f"{task.noise:.4f}",
                task.optimum,
                f"{task.optimum_parameters:.0%}",
                _in_sd(task.full_depth_regret, task.noise),
                task.best_band,
                _in_sd(task.best_band_regret, task.noise),
                task.smallest,
                f"{task.smallest_parameters:.0%}",
                task.best_set or NOTHING,
                NOTHING if task.best_set_gain_in_seed_sd is None else f"{task.best_set_gain_in_seed_sd:.2f} SD",
                f"{task.edge_share:.0%}",
            ]
        )
    return _table(head, body)


def _over_tasks(tables: Mapping[str, Table], measured: Mapping[str, Measured]) -> str:
    """Nothing where fewer than two tables could say the same of a signal."""
    wanted = {task: table for task, table in tables.items() if not table.header.control and task in measured}
    if len(wanted) < 2:
        return ""
    by_task = {
        task: {each.signal: each for each in band_signals(table, measured[task])} for task, table in wanted.items()
    }
    rungs = {task: [each for each in rung_signals(table) if each.decayed] for task, table in wanted.items()}
    head = ["rank correlation within equal width", "mean", *wanted, "seconds, mean"]
    body = []
    for name in next(iter(by_task.values())):
        found = [signals[name] for signals in by_task.values() if name in signals]
        costs = [each.seconds for each in found if each.seconds is not None]
        body.append([name, *_mean_first([each.within_width for each in found]), f"{_mean(costs):.1f}" if costs else ""])
    for index, steps in enumerate(next(iter(wanted.values())).header.rungs):
        values = [each[index].within_width for each in rungs.values()]
        body.append([f"every band alone, {steps} steps", *_mean_first(values), ""])
    first, *others = body
    others.sort(key=lambda row: -float(row[1]) if row[1] != NOTHING else 2.0)
    chosen = [
        [each.task, each.signal, _rho(each.within_width), " + ".join(each.pair), _rho(each.pair_within_width)]
        for each in held_out({task: ranking(table, measured[task]) for task, table in wanted.items()})
    ]
    validated = _table(
        ["held out", "signal that the others choose", "on it", "pair that the others choose", "on it"], chosen
    )
    return f"## Signals over tasks\n\n{_table(head, [first, *others])}\n\n{validated}"


def _mean_first(values: Sequence[float | None]) -> list[str]:
    known = [value for value in values if value is not None]
    return [_rho(_mean(known) if known else None), *map(_rho, values)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _task(task: TaskFigures, table: Table, measured: Measured | None) -> str:
    parts = [f"## {task.task}", _arms(task), _curves(task), _decisions(task), _rungs(table), _signals(table, measured)]
    return "\n\n".join(part for part in parts if part)


def _arms(task: TaskFigures) -> str:
    head = ["arm", "replays", "reached", "after", "looked at until", "regret", "parameters"]
    body = [
        [
            f"**{name}**" if name == OURS else name,
            str(arm.replays),
            f"{arm.share_reached:.0%}",
            _interval(arm.seconds, lambda seconds: f"{seconds / task.exhaustive_seconds:.2%}"),
            f"{arm.horizon / task.exhaustive_seconds:.1%}",
            _in_sd(arm.regret, task.noise),
            NOTHING if arm.parameters is None else f"{arm.parameters:.0%}",
        ]
        for name, arm in task.arms.items()
    ]
    return _table(head, body)


def _curves(task: TaskFigures) -> str:
    head = ["regret in SD after", *(f"{share:.1%}" for share in GRID)]
    unit = task.noise or 1.0
    body = [
        [name, *(_interval(spread, lambda regret: f"{regret / unit:.1f}") for spread in arm.curve)]
        for name, arm in task.arms.items()
    ]
    return _table(head, body)


def _decisions(task: TaskFigures) -> str:
    if not task.handed:
        return f"No budget of {OURS} paid for a run."
    head = [f"budget of {OURS}", "regret", "parameters", "worse than full depth by an SD", "decided"]
    body = [
        [
            share,
            _in_sd(each.regret, task.noise),
            f"{each.parameters:.0%}",
            f"{each.worse:.0%}",
            ", ".join(f"{count} × {kind.replace('_', ' ')}" for kind, count in each.choices.items()),
        ]
        for share, each in task.handed.items()
    ]
    return _table(head, body)


def _rungs(table: Table) -> str:
    head = ["rank correlation with the full loss", "entries", "all", "within width classes", "within equal width"]
    body = [
        [
            f"after {each.steps} steps{'' if each.decayed else ', at a constant rate'}",
            str(each.entries),
            *map(_rho, (each.overall, each.within_classes, each.within_width)),
        ]
        for each in rung_signals(table)
    ]
    return _table(head, body)


def _signals(table: Table, measured: Measured | None) -> str:
    head = [
        "signal, summed over the band",
        "all",
        "within equal width",
        f"regret of the first {TOP}",
        "up to half of the depth",
        "seconds",
    ]
    body = [
        [
            each.signal,
            _rho(each.overall),
            _rho(each.within_width),
            _in_sd(each.regret, table.noise),
            _in_sd(each.narrow_regret, table.noise),
            "" if each.seconds is None else f"{each.seconds:.1f}",
        ]
        for each in band_signals(table, measured)
    ]
    share = table.profile.seconds / table.exhaustive_seconds
    told = f"Without a deadline the probe took {table.profile.seconds:.1f} s, {share:.2%} of the table."
    if table.probes:
        each = [f"{found.seconds:.1f} s of 1/{1 / budget:.0f}" for budget, found in sorted(table.probes.items())]
        told += f" In runs with a budget it took {', '.join(each)}."
    return f"{_table(head, body)}\n\n{told}"


def _interval(spread: Spread, show: Callable[[float], str]) -> str:
    low, middle, high = (NOTHING if value is None else show(value) for value in spread)
    return NOTHING if low == NOTHING else f"{middle} ({low} to {high})"


def _in_sd(regret: float | None, noise: float) -> str:
    return NOTHING if regret is None else f"{regret / noise:.2f} SD" if noise else f"{regret:.4f} nats"


def _rho(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2f}"


def _figure(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3g}"


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
