"""From facts to the words, tables and drawings of the report; both twins show the same page."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup

from bandsearch.run import charts
from bandsearch.run.facts import ReportFacts
from bandsearch.run.forgetting import METRICS as FORGETTING
from bandsearch.run.forgetting import ForgettingRow, forgetting_rows
from bandsearch.run.rows import (
    ArmRow,
    BudgetRow,
    DifferenceRow,
    FinalistRow,
    PriorRow,
    SampleRow,
    Tile,
    arm_rows,
    difference_row,
    failed_tasks,
    finalist_rows,
    prior_rows,
    sample_rows,
    tiles_of,
)
from bandsearch.run.words import CHOICE_WORDS, charged, percent, place_of, short_name
from bandsearch.search.correlation import signals
from bandsearch.values.band import Band
from bandsearch.values.budget import Unit
from bandsearch.values.evaluation import Arm, ArmScores, Choice, Evaluation, Metric, Winner
from bandsearch.values.signal import Signal
from bandsearch.values.trial import TrialResult, TrialStage, TrialState


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
    test_examples: str
    judged: str
    cut_tasks: bool
    task_form: str
    failed_tasks: tuple[str, ...]
    forgetting: tuple[ForgettingRow, ...]
    retention_texts: str
    top_layers: str
    sensitivity: Markup
    views: Markup | None
    band_maps: tuple[Panel, ...]
    pareto: tuple[Panel, ...]
    history: Markup | None
    counts: str
    prior: tuple[PriorRow, ...]
    finalists: tuple[FinalistRow, ...]
    confirm_steps: int
    divergences: bool
    rates: Markup | None
    signals: tuple[Signal, ...]
    budget: Markup
    budget_rows: tuple[BudgetRow, ...]
    budget_words: str
    samples: tuple[SampleRow, ...]
    layer_bars: tuple[str, ...]


def make_page(facts: ReportFacts) -> Page:
    winner = facts.winner
    evaluation = winner.distinct(facts.evaluation)
    search = [trial for trial in facts.trials if trial.stage is TrialStage.SEARCH]
    model, data = short_name(facts.spec.model.name), " + ".join(map(short_name, facts.spec.data.names))
    headline, tone = _headline(winner, facts.evaluation)
    spent = sum(facts.ledger_by_stage.values())
    tasks = tuple(dict.fromkeys(name for arm in evaluation.arms for name in arm.tasks))
    unit = facts.spec.budget.unit if facts.spec.budget else Unit.WALL
    planned = {stage.name: stage.seconds * facts.devices for stage in facts.plan.stages}
    stages = [(stage, planned.get(stage), seconds) for stage, seconds in facts.ledger_by_stage.items()]
    limit = facts.spec.budget.seconds if facts.spec.budget else None
    bound = "no time limit" if limit is None else f"{percent(spent / limit)} of the budget of {facts.spec.budget}"
    if winner.steps_trained is not None:
        bound += f", {winner.steps_trained} steps of the final training"
    return Page(
        facts=facts,
        title=f"{model} on {data}",
        subtitle=_subtitle(facts),
        headline=headline,
        tone=tone,
        verdict=facts.verdict,
        choice=_choice(facts),
        tiles=(*tiles_of(facts, evaluation), Tile("Compute", charged(spent, unit), bound)),
        task_names=tasks,
        arms=tuple(arm_rows(evaluation.arms, winner, tasks)),
        differences=tuple(difference_row(each) for each in evaluation.comparisons if each.metric not in FORGETTING),
        test_examples=_examples(evaluation.arms[0]),
        judged=evaluation.judged[:1].upper() + evaluation.judged[1:],
        cut_tasks=any(arm.task_documents for arm in evaluation.arms),
        task_form=f"lm-eval's tasks are asked {evaluation.task_form}." if evaluation.task_form else "",
        failed_tasks=tuple(failed_tasks(evaluation.arms)),
        forgetting=tuple(forgetting_rows(evaluation)),
        retention_texts=evaluation.retention_texts,
        top_layers=", ".join(map(str, facts.profile.ranking[:5])),
        sensitivity=charts.layer_sensitivity(facts.profile, winner.candidate.bands),
        views=charts.layer_views(facts.profile.views, facts.profile.layer_count, winner.candidate.bands)
        if len(facts.profile.views) > 1
        else None,
        band_maps=tuple(_band_maps(facts, search)),
        pareto=tuple(_pareto(facts, search)),
        history=charts.history(search, winner.candidate) if any(trial.points for trial in search) else None,
        counts=_counts(search),
        prior=tuple(prior_rows(facts)),
        finalists=tuple(finalist_rows(winner)),
        confirm_steps=max(finalist.steps for finalist in winner.finalists) if winner.finalists else 0,
        divergences=any(finalist.divergence is not None for finalist in winner.finalists),
        rates=_rates(facts),
        signals=signals(search, winner.finalists, facts.profile, facts.plan.rungs),
        budget=charts.budget_bars(stages, lambda seconds: charged(seconds, unit)),
        budget_rows=tuple(
            BudgetRow(stage, "" if plan is None else charged(plan, unit), charged(seconds, unit))
            for stage, plan, seconds in stages
        ),
        budget_words=f"{charged(spent, unit)} spent, {bound}{_held(facts.devices, unit)}",
        samples=tuple(sample_rows(evaluation.samples, evaluation.arms)),
        layer_bars=tuple(
            "█" * max(1, round(24 * score / max(facts.profile.layer_scores))) if score > 0 else ""
            for score in facts.profile.layer_scores
        ),
    )


def _held(devices: int, unit: Unit) -> str:
    names = {Unit.GPU: "accelerator", Unit.CPU: "core"}
    return f", on {devices} {names[unit]}{'' if devices == 1 else 's'}" if unit in names else ""


def _subtitle(facts: ReportFacts) -> str:
    bound = str(facts.spec.budget) if facts.spec.budget else f"{facts.spec.trials} candidates"
    parts = [f"budget {bound}", f"space {facts.spec.space.name}", f"seed {facts.spec.seed}"]
    if facts.spec.model.dtype == "nf4":
        parts.append("trained and measured on an NF4 base")
    parts += [facts.environment[key] for key in ("started",) if key in facts.environment]
    return " · ".join(parts)


def _headline(winner: Winner, evaluation: Evaluation) -> tuple[str, str]:
    """As in the verdict: a win is claimed only where validation and the test split both show one."""
    where = place_of(winner)
    comparison = evaluation.comparison(Arm.WINNER, Arm.FULL_DEPTH, Metric.LOSS)
    if winner.choice is Choice.UNCOMPARED:
        return "Nothing could be compared in this budget: full-depth LoRA is handed over.", "open"
    if winner.choice is Choice.BASELINE or comparison is None:
        return "No gain was shown: full depth is handed over.", "open"
    share = winner.trainable_parameters / winner.baseline_parameters
    size = f"{percent(share)} of the parameters"
    difference = comparison.difference
    if difference.high < 0 and winner.choice is Choice.BEATS_BASELINE:
        return f"LoRA on {where} beats tuned full-depth LoRA, with {size}.", "good"
    if winner.is_behind(evaluation):
        return f"LoRA on {where} kept up on validation, but is behind full depth on the test split.", "bad"
    if difference.high < 0:
        ahead = "is ahead of full depth on the test split, but not beyond noise on validation, so no win is claimed"
        return f"LoRA on {where} {ahead}; {size}.", "open"
    alike = "within noise of full depth" if difference.low <= 0 else "behind full depth by less than matters"
    return f"No gain was shown: LoRA on {where} is {alike}, with {size}.", "open"


def _examples(arm: ArmScores) -> str:
    several = f" of {arm.questions} different questions" if arm.questions < len(arm.examples) else ""
    return f"{len(arm.examples)} examples{several} that no stage has seen before"


def _choice(facts: ReportFacts) -> str:
    """How it was chosen on validation, unless the verdict says so already."""
    winner = facts.winner
    words = f"Chosen because: {CHOICE_WORDS[winner.choice]}." if len(winner.finalists) > 1 else ""
    return words if winner.reason in facts.verdict else f"{words} {winner.reason}".strip()


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
            drawing = charts.band_map(best, counts, _marks(facts.winner, search), facts.profile.layer_count)
            yield Panel(f"after {rung} steps ({len(best)} bands)", drawing)


def _pareto(facts: ReportFacts, search: list[TrialResult]) -> Iterable[Panel]:
    rungs = {rung: [trial for trial in search if trial.loss_at(rung) is not None] for rung in facts.plan.rungs}
    full_enough = [rung for rung, reached in rungs.items() if len(reached) >= 6]
    for rung in full_enough[-1:]:
        points = [
            (
                trial.trainable_parameters,
                loss,
                charts.class_of(trial.candidate, trial.role, facts.winner.candidate),
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
                charts.class_of(finalist.candidate, finalist.role, facts.winner.candidate),
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


def _rates(facts: ReportFacts) -> Markup | None:
    rates = facts.profile.rate_range
    if len(rates.points) < 2:
        return None
    winner = facts.winner
    named = ((winner.candidate, "winner"), (winner.baseline, "baseline"))
    used = [(winner.as_trained(candidate).learning_rate, name) for candidate, name in named]
    return charts.rate_range(rates, used)
