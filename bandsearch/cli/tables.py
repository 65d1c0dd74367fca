"""Tables for people, out of typed values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bandsearch.cli.display import clock_text

if TYPE_CHECKING:
    from bandsearch.models.loading import ModelSummary
    from bandsearch.run.outcome import RunStatus
    from bandsearch.values.evaluation import Evaluation
    from bandsearch.values.plan import Plan
    from bandsearch.values.spec import RunSpec


def facts_table(facts: Mapping[str, str]) -> Table:
    """Names and values, side by side."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, Text(value))
    return table


def plan_table(plan: Plan, spec: RunSpec) -> RenderableType:
    stages = Table(box=box.SIMPLE_HEAD)
    stages.add_column("stage")
    stages.add_column("wall clock", justify="right")
    stages.add_column("what it buys", overflow="fold")
    for stage in plan.stages:
        stages.add_row(stage.name, clock_text(stage.seconds), Text(stage.detail))
    stages.add_section()
    stages.add_row("together", clock_text(sum(stage.seconds for stage in plan.stages)), "")
    bound = str(spec.budget) if spec.budget else f"{spec.trials} candidates"
    facts = {
        "budget": bound if plan.wall_seconds is None else f"{bound}, {clock_text(plan.wall_seconds)} wall clock here",
        "engines": str(plan.engines),
        "one step": f"{plan.costs.seconds_per_step:.3g} s, {plan.batch_size} examples",
        "final training": f"{plan.full_steps} steps",
        "disk": _bytes(plan.disk_bytes),
        "memory": _bytes(plan.memory_bytes),
    }
    if plan.compares:
        facts["rungs"] = " → ".join(map(str, plan.rungs)) + " steps"
        facts["candidates"] = f"about {plan.expected_trials}" if plan.trial_limit is None else str(plan.trial_limit)
    return Group(facts_table(facts), stages, *([Text(plan.advice)] if plan.advice else []))


def status_table(status: RunStatus) -> RenderableType:
    spent = sum(status.spent_by_stage.values())
    limit = "" if status.limit is None else f" of {clock_text(status.limit)} ({spent / status.limit:.0%})"
    facts = {
        "run": status.directory,
        "model": status.model,
        "data": status.data,
        "done": ", ".join(status.stages_done) or "nothing yet",
        "next": status.next_stage or "nothing: the run is complete",
        "spent": f"{clock_text(spent)}{limit} device time",
        "trainings": ", ".join(f"{count} {state.replace('_', ' ')}" for state, count in status.trials.items())
        or "none",
        "best loss": "–" if status.best_loss is None else f"{status.best_loss:.4f}",
    }
    if status.next_command:
        facts["go on with"] = status.next_command
    parts: list[RenderableType] = [facts_table(facts)]
    if status.spent_by_stage:
        stages = Table(box=box.SIMPLE_HEAD)
        stages.add_column("stage")
        stages.add_column("spent", justify="right")
        for stage, seconds in status.spent_by_stage.items():
            stages.add_row(stage, clock_text(seconds))
        parts.append(stages)
    return Group(*parts)


def evaluation_table(evaluation: Evaluation) -> RenderableType:
    tasks = list(dict.fromkeys(name for arm in evaluation.arms for name in arm.tasks))
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("arm")
    kept = ("retention loss", "divergence") if any(arm.retention for arm in evaluation.arms) else ()
    for name in ("loss", "exact match", *tasks, *kept):
        table.add_column(Text(name), justify="right")
    for arm in evaluation.arms:
        exact = "–" if arm.exact_match is None else f"{arm.exact_match:.1%}"
        scores = [f"{arm.tasks[name]:.4f}" if name in arm.tasks else "–" for name in tasks]
        if arm.retention is not None:
            scores += [f"{arm.retention.loss:.4f}", f"{arm.retention.divergence:.4f}"]
        table.add_row(arm.arm, f"{arm.loss:.4f}", exact, *scores)
    lines = [
        Text(
            f"{c.arm} − {c.reference}, {c.metric.replace('_', ' ')}: {c.difference.mean:+.4f} "
            f"({c.difference.level:.0%} interval {c.difference.low:+.4f} to {c.difference.high:+.4f})"
        )
        for c in evaluation.comparisons
    ]
    if evaluation.too_long:
        lines.append(Text(f"Of {len(evaluation.arms[0].examples)} examples, {evaluation.judged}."))
    if evaluation.task_form:
        lines.append(Text(f"lm-eval's tasks are asked {evaluation.task_form}."))
    return Group(table, *lines)


def model_table(summary: ModelSummary) -> RenderableType:
    layout = summary.layout
    facts = {
        "model": str(summary.source),
        "architecture": f"{summary.architecture} ({layout.family})",
        "layers": f"{layout.layer_count} of width {layout.hidden_size}, at {layout.layers_path}",
        "parameters": f"{summary.parameters:,}",
        "weights": ", ".join(f"{_bytes(size)} in {dtype}" for dtype, size in summary.bytes_by_dtype.items()),
        "vocabulary": f"{summary.vocabulary:,}",
        "context": "unknown" if summary.context_length is None else f"{summary.context_length:,} tokens",
        "targets": ", ".join(layout.target_names),
        "vLLM serves LoRA": layout.serving.value,
    }
    modules = Table(box=box.SIMPLE_HEAD)
    for name in ("module of a layer", "group", "in", "out", "layers"):
        modules.add_column(name, justify="right" if name in ("in", "out") else "left")
    for linear in layout.linears:
        size = f"{linear.in_features:,}", f"{linear.out_features:,}"
        modules.add_row(linear.name, linear.group, *size, ", ".join(map(str, linear.layers)) or "all")
    return Group(facts_table(facts), modules)


def _bytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
