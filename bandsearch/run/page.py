"""From facts to the words, tables and drawings of the report; both twins show the same page."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePath

from markupsafe import Markup

from bandsearch.run import charts
from bandsearch.run.facts import ReportFacts
from bandsearch.run.signals import Signal, signals
from bandsearch.values.band import Band
from bandsearch.values.budget import Unit
from bandsearch.values.candidate import Candidate, Role
from bandsearch.values.evaluation import Choice, Comparison, Evaluation, Interval, Winner
from bandsearch.values.trial import TrialResult, TrialState

SHOWN_SAMPLES = 6
SHOWN_CHARACTERS = 400
ARM_NAMES = {"base": "base model", "full_depth": "full-depth LoRA", "winner": "winner"}
ROLE_NAMES = {
    Role.SEARCHED: "searched",
    Role.FULL_DEPTH: "full depth",
    Role.MID_BLOCK: "20–80 % mid-block",
    Role.LAST_K: "last layers",
    Role.RANDOM_BAND: "random band",
}
METRIC_NAMES = {"loss": "test loss", "exact_match": "exact match"}
CHOICE_WORDS = {
    Choice.BEATS_BASELINE: "beat the tuned baseline on validation",
    Choice.SMALLEST_WITHIN_NOISE: "smallest adapter within noise of the best on validation",
    Choice.BASELINE: "nothing on validation was better than the tuned baseline",
}


@dataclass(frozen=True)
class Tile:
    name: str
    value: str
    note: str
    drawing: Markup | None = None


@dataclass(frozen=True)
class ArmRow:
    name: str
    class_: str
    parameters: str
    share: str
    loss: str
    exact_match: str
    tasks: tuple[str, ...]


@dataclass(frozen=True)
class DifferenceRow:
    words: str
    metric: str
    mean: str
    interval: str
    meaning: str
    drawing: Markup


@dataclass(frozen=True)
class FinalistRow:
    role: str
    class_: str
    candidate: Candidate
    layers: str
    parameters: str
    loss: str
    seeds: tuple[str, ...]
    drawing: Markup


@dataclass(frozen=True)
class SampleRow:
    prompt: str
    answer: str
    outputs: tuple[tuple[str, str, bool | None], ...]


@dataclass(frozen=True)
class BudgetRow:
    stage: str
    planned: str
    spent: str


@dataclass(frozen=True)
class Panel:
    name: str
    drawing: Markup


@dataclass(frozen=True)
class Page:
    facts: ReportFacts
    title: str
    subtitle: str
    headline: str
    tone: str
    verdict: str
    choice: str
    tiles: tuple[Tile, ...]
    task_names: tuple[str, ...]
    arms: tuple[ArmRow, ...]
    differences: tuple[DifferenceRow, ...]
    test_examples: int
    top_layers: str
    sensitivity: Markup
    views: Markup | None
    band_maps: tuple[Panel, ...]
    pareto: tuple[Panel, ...]
    history: Markup | None
    counts: str
    finalists: tuple[FinalistRow, ...]
    confirm_steps: int
    rates: Markup | None
    signals: tuple[Signal, ...]
    budget: Markup
    budget_rows: tuple[BudgetRow, ...]
    budget_words: str
    samples: tuple[SampleRow, ...]
    layer_bars: tuple[str, ...]


def make_page(facts: ReportFacts) -> Page:
    winner, evaluation = facts.winner, facts.evaluation
    search = [trial for trial in facts.trials if trial.stage == "search"]
    model, data = short_name(facts.spec.model.name), short_name(facts.spec.data.name)
    headline, tone = _headline(winner, evaluation)
    spent = sum(facts.ledger_by_stage.values())
    tasks = tuple(dict.fromkeys(name for arm in evaluation.arms for name in arm.tasks))
    divisor, unit = _unit(facts, spent)
    planned = {stage.name: stage.seconds * facts.devices for stage in facts.plan.stages}
    stages = [(stage, planned.get(stage), seconds) for stage, seconds in facts.ledger_by_stage.items()]
    limit = facts.spec.budget.seconds if facts.spec.budget else None
    budget_words = f"{spent / divisor:.4g} {unit} spent"
    if limit is not None:
        budget_words += f" of {limit / divisor:.4g} {unit} ({spent / limit:.1%})"
    return Page(
        facts=facts,
        title=f"{model} on {data}",
        subtitle=_subtitle(facts),
        headline=headline,
        tone=tone,
        verdict=facts.verdict,
        choice=f"Chosen because: {CHOICE_WORDS[winner.choice]}. {winner.reason}",
        tiles=_tiles(facts, budget_words),
        task_names=tasks,
        arms=tuple(_arm_rows(facts, tasks)),
        differences=tuple(_difference(comparison) for comparison in evaluation.comparisons),
        test_examples=len(evaluation.arms[0].examples),
        top_layers=", ".join(map(str, facts.profile.ranking[:5])),
        sensitivity=charts.layer_sensitivity(facts.profile, winner.candidate.bands),
        views=charts.layer_views(facts.profile.views, facts.layer_count, winner.candidate.bands)
        if len(facts.profile.views) > 1
        else None,
        band_maps=tuple(_band_maps(facts, search)),
        pareto=tuple(_pareto(facts, search)),
        history=charts.history(search) if any(trial.points for trial in search) else None,
        counts=_counts(search),
        finalists=tuple(_finalists(winner)),
        confirm_steps=max(finalist.steps for finalist in winner.finalists) if winner.finalists else 0,
        rates=_rates(facts),
        signals=signals(search, winner, facts.profile, facts.plan.rungs),
        budget=charts.budget_bars(stages, unit, divisor),
        budget_rows=tuple(
            BudgetRow(stage, "" if plan is None else f"{plan / divisor:.4g}", f"{seconds / divisor:.4g}")
            for stage, plan, seconds in stages
        ),
        budget_words=budget_words,
        samples=tuple(_samples(facts)),
        layer_bars=tuple(
            "█" * max(1, round(24 * score / max(facts.profile.layer_scores))) if score > 0 else ""
            for score in facts.profile.layer_scores
        ),
    )


def markdown_text(text: object) -> str:
    """`text` as it is, in Markdown: nothing in it is markup, HTML or a new table cell."""
    flat = " ".join(str(text).split())
    escaped = flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#~!])", r"\\\1", escaped)


def short_name(name: str) -> str:
    """A hub id or a demo task as it is; of a path its last part."""
    return PurePath(name).name if name.startswith((".", "/", "~")) else name


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _subtitle(facts: ReportFacts) -> str:
    bound = str(facts.spec.budget) if facts.spec.budget else f"{facts.spec.trials} candidates"
    parts = [f"budget {bound}", f"space {facts.spec.space.name}", f"seed {facts.spec.seed}"]
    parts += [facts.environment[key] for key in ("started",) if key in facts.environment]
    return " · ".join(parts)


def _headline(winner: Winner, evaluation: Evaluation) -> tuple[str, str]:
    """A win is claimed only where the interval on the test loss lies below zero."""
    where = charts.layers_of(winner.candidate.bands)
    comparison = evaluation.comparison("winner", "full_depth", "loss")
    if winner.candidate == winner.baseline:
        return "Full depth is the best choice here: no band beat it.", "open"
    share = winner.trainable_parameters / winner.baseline_parameters
    size = f"with {share:.0%} of its parameters" if share < 1 else f"with {share:.2g}× its parameters"
    if comparison is None or not comparison.difference.excludes_zero:
        return f"Nothing to gain beyond noise: {where} do what full depth does, {size}.", "open"
    if comparison.difference.high < 0:
        return f"An adapter on {where} beats full-depth LoRA, {size}.", "good"
    return f"On the test split full depth is better than the chosen {where}.", "bad"


def _tiles(facts: ReportFacts, budget_words: str) -> tuple[Tile, ...]:
    winner, evaluation = facts.winner, facts.evaluation
    candidate = winner.candidate
    share = winner.trainable_parameters / winner.baseline_parameters
    tiles = [
        Tile(
            "Where it sits",
            charts.layers_of(candidate.bands),
            f"{len(candidate.layers)} of {facts.layer_count} layers, rank {candidate.rank} on "
            f"{' + '.join(candidate.targets)}, rate {candidate.learning_rate:.2g}, {candidate.method}",
            charts.layer_strip(candidate, facts.layer_count),
        ),
        Tile(
            "Trainable parameters",
            f"{winner.trainable_parameters:,}",
            f"{percent(share)} of full depth ({winner.baseline_parameters:,})",
        ),
    ]
    for metric, name in (("loss", "Test loss against full depth"), ("exact_match", "Exact match against full depth")):
        comparison = evaluation.comparison("winner", "full_depth", metric)
        if comparison is not None:
            row = _difference(comparison)
            tiles.append(Tile(name, row.mean, f"95 % interval {row.interval}: {row.meaning}", row.drawing))
    return (*tiles, Tile("Compute", budget_words.split(" spent")[0], budget_words))


def _difference(comparison: Comparison) -> DifferenceRow:
    interval, metric = comparison.difference, comparison.metric
    better = "low" if metric == "loss" else "high"
    if not interval.excludes_zero:
        meaning = "within noise"
    else:
        meaning = "better" if (interval.high < 0) == (better == "low") else "worse"
    return DifferenceRow(
        words=f"{ARM_NAMES.get(comparison.arm, comparison.arm)} − "
        f"{ARM_NAMES.get(comparison.reference, comparison.reference)}",
        metric=METRIC_NAMES.get(metric, metric),
        mean=_signed(interval.mean, metric),
        interval=_span(interval, metric),
        meaning=meaning,
        drawing=charts.interval_bar(interval, better),
    )


def _signed(value: float, metric: str) -> str:
    text = f"{value:+.4f}" if metric == "loss" else f"{100 * value:+.1f} pts"
    return text.replace("-", "−")


def _span(interval: Interval, metric: str) -> str:
    return f"{_signed(interval.low, metric)} to {_signed(interval.high, metric)}"


def _arm_rows(facts: ReportFacts, tasks: tuple[str, ...]) -> Iterable[ArmRow]:
    full = facts.winner.baseline_parameters
    for arm in facts.evaluation.arms:
        yield ArmRow(
            name=ARM_NAMES.get(arm.arm, arm.arm),
            class_={"winner": "winner", "full_depth": "baseline"}.get(arm.arm, "quiet"),
            parameters=f"{arm.trainable_parameters:,}",
            share=percent(arm.trainable_parameters / full),
            loss=f"{arm.loss:.4f}",
            exact_match="–" if arm.exact_match is None else percent(arm.exact_match),
            tasks=tuple(f"{arm.tasks[name]:.4f}" if name in arm.tasks else "–" for name in tasks),
        )


def _marks(winner: Winner, search: list[TrialResult]) -> dict[Band, str]:
    marks = {
        trial.candidate.bands[0]: charts.LETTERS[trial.role]
        for trial in search
        if trial.role.is_baseline and len(trial.candidate.bands) == 1
    }
    if len(winner.candidate.bands) == 1:
        marks[winner.candidate.bands[0]] = "W"
    return marks


def _band_maps(facts: ReportFacts, search: list[TrialResult]) -> Iterable[Panel]:
    """One map per rung, because losses after different numbers of steps cannot be compared."""
    for rung in facts.plan.rungs:
        best: dict[Band, float] = {}
        counts: dict[Band, int] = {}
        for trial in search:
            loss = trial.loss_at(rung)
            if loss is None or len(trial.candidate.bands) > 1:
                continue
            band = trial.candidate.bands[0]
            best[band] = min(loss, best.get(band, loss))
            counts[band] = counts.get(band, 0) + 1
        if len(best) >= 3:
            drawing = charts.band_map(best, counts, _marks(facts.winner, search), facts.layer_count)
            yield Panel(f"after {rung} steps ({len(best)} bands)", drawing)


def _class(candidate: Candidate, role: Role, winner: Winner) -> str:
    if candidate == winner.candidate:
        return "winner"
    if role is Role.FULL_DEPTH:
        return "baseline"
    return "other" if role.is_baseline else "search"


def _pareto(facts: ReportFacts, search: list[TrialResult]) -> Iterable[Panel]:
    rungs = {rung: [trial for trial in search if trial.loss_at(rung) is not None] for rung in facts.plan.rungs}
    full_enough = [rung for rung, reached in rungs.items() if len(reached) >= 6]
    for rung in full_enough[-1:]:
        points = [
            (
                trial.trainable_parameters,
                loss,
                _class(trial.candidate, trial.role, facts.winner),
                f"#{trial.number} {trial.candidate}: loss {loss:.4f}, {trial.trainable_parameters:,} parameters",
            )
            for trial in rungs[rung]
            if (loss := trial.loss_at(rung)) is not None
        ]
        yield Panel(f"search, after {rung} steps", charts.pareto(points))
    if len(facts.winner.finalists) > 1:
        confirmed = [
            (
                finalist.trainable_parameters,
                finalist.loss,
                _class(finalist.candidate, finalist.role, facts.winner),
                f"{finalist.candidate}: loss {finalist.loss:.4f}, {finalist.trainable_parameters:,} parameters",
            )
            for finalist in facts.winner.finalists
        ]
        steps = max(finalist.steps for finalist in facts.winner.finalists)
        yield Panel(f"confirmation, after {steps} steps, mean of seeds", charts.pareto(confirmed))


def _counts(search: list[TrialResult]) -> str:
    counted = {state: sum(trial.state is state for trial in search) for state in TrialState}
    words = [f"{count} {state.replace('_', ' ')}" for state, count in counted.items() if count]
    return f"{len(search)} candidates: {', '.join(words)}" if search else "no candidates"


def _finalists(winner: Winner) -> Iterable[FinalistRow]:
    losses = [loss for finalist in winner.finalists for loss in finalist.losses]
    if not losses:
        return
    air = 0.04 * (max(losses) - min(losses)) or 0.01
    for finalist in sorted(winner.finalists, key=lambda finalist: finalist.loss):
        class_ = _class(finalist.candidate, finalist.role, winner)
        yield FinalistRow(
            role="winner" if class_ == "winner" else ROLE_NAMES[finalist.role],
            class_=class_,
            candidate=finalist.candidate,
            layers=charts.layers_of(finalist.candidate.bands),
            parameters=f"{finalist.trainable_parameters:,}",
            loss=f"{finalist.loss:.4f}",
            seeds=tuple(f"{loss:.4f}" for loss in finalist.losses),
            drawing=charts.finalist_dots(finalist, min(losses) - air, max(losses) + air, class_),
        )


def _rates(facts: ReportFacts) -> Markup | None:
    rates = facts.profile.rate_range
    if len(rates.points) < 2:
        return None
    used = ((facts.winner.candidate.learning_rate, "winner"), (facts.winner.baseline.learning_rate, "baseline"))
    return charts.rate_range(rates, used)


def _unit(facts: ReportFacts, spent: float) -> tuple[float, str]:
    held = facts.spec.budget.unit if facts.spec.budget else Unit.WALL
    prefix = "" if held is Unit.WALL else f"{held}-"
    divisor, name = (1.0, "s") if spent < 180 else (60.0, "min") if spent < 7200 else (3600.0, "h")
    return divisor, prefix + name


def _samples(facts: ReportFacts) -> Iterable[SampleRow]:
    arms = [arm for arm in facts.evaluation.arms if any(e.generated is not None for e in arm.examples)]
    for index, sample in enumerate(facts.samples):
        outputs = tuple(
            (ARM_NAMES.get(arm.arm, arm.arm), _cut(example.generated), example.correct)
            for arm in arms
            if (example := arm.examples[index]).generated is not None
        )
        if outputs and index < SHOWN_SAMPLES:
            yield SampleRow(_cut(sample.prompt), _cut(sample.answer), outputs)


def _cut(text: str | None) -> str:
    text = text or ""
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"
