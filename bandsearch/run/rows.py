"""The rows of the report's tables, as text ready to print."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from bandsearch.run import charts
from bandsearch.run.facts import ReportFacts
from bandsearch.run.words import ARM_NAMES, METRIC_NAMES, ROLE_NAMES, layers_of, percent, signed, span
from bandsearch.values.candidate import Candidate
from bandsearch.values.evaluation import Arm, ArmScores, Comparison, Evaluation, Metric, Sample, Trained, Winner
from bandsearch.values.trial import TrialStage

SHOWN_SAMPLES = 6
SHOWN_CHARACTERS = 400


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
    divergence: str
    drawing: Markup


@dataclass(frozen=True)
class PriorRow:
    candidate: Candidate
    layers: str
    reason: str
    reading: str


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


def tiles_of(facts: ReportFacts, evaluation: Evaluation) -> list[Tile]:
    winner = facts.winner
    candidate = winner.as_trained(winner.candidate)
    share = winner.trainable_parameters / winner.baseline_parameters
    tiles = [
        Tile(
            "Where it sits",
            layers_of(candidate.bands),
            f"{len(candidate.layers)} of {facts.profile.layer_count} layers, rank {candidate.rank} on "
            f"{' + '.join(candidate.targets)}, rate {candidate.learning_rate:.2g}, {candidate.method}",
            charts.layer_strip(candidate, facts.profile.layer_count),
        ),
        Tile(
            "Trainable parameters",
            f"{winner.trainable_parameters:,}",
            f"{percent(share)} of full depth ({winner.baseline_parameters:,})",
        ),
        *_training(winner),
    ]
    only_baseline = winner.candidate == winner.baseline
    arm, reference = (Arm.FULL_DEPTH, Arm.BASE) if only_baseline else (Arm.WINNER, Arm.FULL_DEPTH)
    for metric, name in ((Metric.LOSS, "Test loss"), (Metric.EXACT_MATCH, "Exact match")):
        comparison = evaluation.comparison(arm, reference, metric)
        if comparison is not None:
            row = difference_row(comparison)
            note = f"95 % interval {row.interval}: {row.meaning}"
            tiles.append(Tile(f"{name} vs {reference.replace('_', ' ')}", row.mean, note, row.drawing))
    return tiles


def _training(winner: Winner) -> Iterable[Tile]:
    """What was done to the winner in the final training, and to the baseline where that is another one."""
    ours, theirs = winner.trained(winner.candidate), winner.trained(winner.baseline)
    if ours is None:
        return
    notes = [_kept(ours)]
    if theirs is not None and theirs != ours:
        notes.append(f"full depth: {theirs.steps} steps, {_kept(theirs)}")
    yield Tile("Final training", f"{ours.steps} steps", "; ".join(notes))


def _kept(trained: Trained) -> str:
    words, chosen = f"the adapter of step {trained.kept_step} is kept", trained.candidate.learning_rate
    if trained.learning_rate != chosen:
        words += f", rate {trained.learning_rate:.2g} because {chosen:.2g} diverged"
    return words


def arm_rows(arms: Sequence[ArmScores], winner: Winner, tasks: tuple[str, ...]) -> Iterable[ArmRow]:
    full = winner.baseline_parameters
    for arm in arms:
        yield ArmRow(
            name=ARM_NAMES[arm.arm],
            class_=charts.ARM_CLASSES.get(arm.arm, "quiet"),
            parameters=f"{arm.trainable_parameters:,}",
            share=percent(arm.trainable_parameters / full),
            loss=f"{arm.loss:.4f}",
            exact_match="–" if arm.exact_match is None else percent(arm.exact_match),
            tasks=tuple(_score(arm, name) for name in tasks),
        )


def _score(arm: ArmScores, task: str) -> str:
    if task not in arm.tasks:
        return "–"
    documents = arm.documents(task)
    return f"{arm.tasks[task]:.4f}" + (f" (first {documents})" if documents is not None else "")


def failed_tasks(arms: Sequence[ArmScores]) -> Iterable[str]:
    """A sentence for every task that has no score, and for every reason of that."""
    found: dict[tuple[str, str], list[str]] = {}
    for arm in arms:
        for failure in arm.task_failures.items():
            found.setdefault(failure, []).append(ARM_NAMES[arm.arm])
    for (task, reason), names in found.items():
        yield f"{task} could not be read ({', '.join(names)}): {reason}."


def difference_row(comparison: Comparison) -> DifferenceRow:
    interval, metric = comparison.difference, comparison.metric
    if not interval.excludes_zero:
        meaning = "within noise"
    else:
        meaning = "better" if (interval.high < 0) == metric.lower_is_better else "worse"
    return DifferenceRow(
        words=f"{ARM_NAMES[comparison.arm]} − {ARM_NAMES[comparison.reference]}",
        metric=METRIC_NAMES[metric],
        mean=signed(interval.mean, metric),
        interval=span(interval, metric),
        meaning=meaning,
        drawing=charts.interval_bar(interval, metric.lower_is_better),
    )


def prior_rows(facts: ReportFacts) -> Iterable[PriorRow]:
    trials = {trial.candidate: trial for trial in facts.trials if trial.stage is TrialStage.SEARCH}
    for suggestion in facts.prior:
        trial = trials.get(suggestion.candidate)
        untried = "not tried" if facts.winner.trained(suggestion.candidate) is None else "in the final training"
        reading = untried if trial is None else trial.state.value.replace("_", " ")
        if trial is not None and trial.points:
            reading = f"{trial.last_loss:.4f} after {trial.steps} steps"
        yield PriorRow(suggestion.candidate, layers_of(suggestion.candidate.bands), suggestion.reason, reading)


def finalist_rows(winner: Winner) -> Iterable[FinalistRow]:
    losses = [loss for finalist in winner.finalists for loss in (finalist.loss, *finalist.losses)]
    if not losses:
        return
    air = 0.04 * (max(losses) - min(losses)) or 0.01
    for finalist in sorted(winner.finalists, key=lambda finalist: finalist.loss):
        class_ = charts.class_of(finalist.candidate, finalist.role, winner.candidate)
        yield FinalistRow(
            role="winner" if class_ == "winner" else ROLE_NAMES[finalist.role],
            class_=class_,
            candidate=finalist.candidate,
            layers=layers_of(finalist.candidate.bands),
            parameters=f"{finalist.trainable_parameters:,}",
            loss=f"{finalist.loss:.4f}",
            seeds=tuple(f"{loss:.4f}" for loss in finalist.losses),
            divergence="–" if finalist.divergence is None else f"{finalist.divergence:.4f}",
            drawing=charts.finalist_dots(finalist, min(losses) - air, max(losses) + air, class_),
        )


def sample_rows(samples: Sequence[Sample], scored: Sequence[ArmScores]) -> Iterable[SampleRow]:
    arms = [arm for arm in scored if any(e.generated is not None for e in arm.examples)]
    known = min((len(arm.examples) for arm in arms), default=0)
    for index, sample in enumerate(samples[: min(known, SHOWN_SAMPLES)]):
        outputs = tuple(
            (ARM_NAMES[arm.arm], _cut(example.generated), example.correct)
            for arm in arms
            if (example := arm.examples[index]).generated is not None
        )
        if outputs:
            yield SampleRow(_cut(sample.prompt), _cut(sample.answer), outputs)


def _cut(text: str | None) -> str:
    text = text or ""
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"
