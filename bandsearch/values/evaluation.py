"""Held-out results of several arms and their paired differences: the content of `evaluation.json`."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from bandsearch.values.candidate import Candidate, Role
from bandsearch.values.retention import Retention
from bandsearch.values.value import Value


class Arm(StrEnum):
    """Who is scored: the bare base, tuned full-depth LoRA, the run's winner, or an adapter given to `eval`."""

    BASE = "base"
    FULL_DEPTH = "full_depth"
    WINNER = "winner"
    ADAPTER = "adapter"


class Metric(StrEnum):
    """`loss` and `exact_match` on the test split, the others on texts of the base's own kind."""

    LOSS = "loss"
    EXACT_MATCH = "exact_match"
    RETENTION_LOSS = "retention_loss"
    DIVERGENCE = "divergence"

    @property
    def lower_is_better(self) -> bool:
        return self is not Metric.EXACT_MATCH


class Interval(Value):
    """A mean with a confidence interval, all in the unit of the metric."""

    mean: float
    low: float
    high: float
    level: float = 0.95

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


class ExampleScore(Value):
    """One test example: mean loss in nats per supervised token, and whether greedy generation was right."""

    loss: float
    supervised_tokens: int
    group: int | None = Field(
        default=None, description="the same for those that ask the same; None where no other example does"
    )
    correct: bool | None = Field(default=None, description="None where the example was not generated for")
    generated: str | None = None


class ArmScores(Value):
    """One arm on the test split, examples in the split's order."""

    arm: Arm
    examples: tuple[ExampleScore, ...]
    trainable_parameters: int = 0
    tasks: dict[str, float] = Field(default_factory=dict, description="lm-eval metric by 'task/metric'")
    task_documents: dict[str, int] = Field(
        default_factory=dict, description="tasks of which time allowed only the first so many documents"
    )
    task_failures: dict[str, str] = Field(default_factory=dict, description="tasks that could not be read, and why")
    retention: Retention | None = Field(default=None, description="None where it was not measured")

    @property
    def loss(self) -> float:
        """Nats per supervised token of all examples: what training lowers and every stage selects by."""
        total = sum(example.loss * example.supervised_tokens for example in self.examples)
        return total / sum(example.supervised_tokens for example in self.examples)

    @property
    def questions(self) -> int:
        """How many different ones the examples ask."""
        groups = [example.group for example in self.examples]
        return groups.count(None) + len({group for group in groups if group is not None})

    @property
    def exact_match(self) -> float | None:
        judged = [example.correct for example in self.examples if example.correct is not None]
        return sum(judged) / len(judged) if judged else None

    @property
    def answered(self) -> int:
        """How many examples exact match is over."""
        return sum(example.correct is not None for example in self.examples)

    def documents(self, metric: str) -> int | None:
        """How many documents lm-eval's `metric` is over where time did not allow all of them."""
        return self.task_documents.get(metric.rpartition("/")[0])


class Comparison(Value):
    """`arm` minus `reference` on one metric over the same examples or texts."""

    arm: Arm
    reference: Arm
    metric: Metric
    difference: Interval


class Sample(Value):
    """A test example as text."""

    prompt: str
    answer: str


class Evaluation(Value):
    """`retention_texts` names what the arms' retention was measured on; `task_form` how lm-eval's tasks were asked;
    `samples` are the first test examples, in the order of the arms' examples."""

    arms: tuple[ArmScores, ...]
    comparisons: tuple[Comparison, ...]
    retention_texts: str = ""
    task_form: str = ""
    too_long: int = Field(
        default=0, description="examples that cannot be judged: their reference is never generated whole"
    )
    samples: tuple[Sample, ...] = ()

    @property
    def answered(self) -> int:
        """How many examples exact match is over, of every arm."""
        return min(arm.answered for arm in self.arms)

    @property
    def judged(self) -> str:
        """What exact match is over, as the end of a sentence on the examples; nothing where none is or could be."""
        left_out = (
            f"{self.too_long} are not judged, as their reference answer is longer than what is generated at most"
            if self.too_long
            else ""
        )
        if not self.answered:
            return f"no exact match: {left_out}" if left_out else ""
        which = f"{self.answered} of the first ones ({left_out})" if left_out else f"the first {self.answered} of them"
        return f"exact match is over {which}, generated greedily"

    def arm(self, name: Arm) -> ArmScores:
        return next(arm for arm in self.arms if arm.arm == name)

    def comparison(self, arm: Arm, reference: Arm, metric: Metric) -> Comparison | None:
        return next((c for c in self.comparisons if (c.arm, c.reference, c.metric) == (arm, reference, metric)), None)


class Finalist(Value):
    """A candidate after confirmation: validation losses at `steps` steps, one per seed; `loss`, their mean less what
    these seeds do to everybody's losses (least squares), so that all can be compared however many seeds each has.
    `divergence` is the mean over the seeds of KL(base || tuned), nats a token; None where it was not measured.
    """

    candidate: Candidate
    role: Role
    trainable_parameters: int
    steps: int
    loss: float
    losses: tuple[float, ...] = Field(min_length=1)
    divergence: float | None = None


class Choice(StrEnum):
    """How the winner was chosen on validation."""

    BEATS_BASELINE = "beats_baseline"
    SMALLEST_WITHIN_NOISE = "smallest_within_noise"
    CLOSEST_WITHIN_NOISE = "closest_within_noise"
    BASELINE = "baseline"
    # The baseline too, but nothing was there that it could be compared with.
    UNCOMPARED = "uncompared"


class Trained(Value):
    """What came of the final training of `candidate`, which keeps the rate that it was chosen with: `learning_rate` is
    lower where that diverged. The adapter is that of step `kept_step` of `steps`, where validation loss was lowest.
    """

    candidate: Candidate
    learning_rate: float
    steps: int
    kept_step: int


class Winner(Value):
    """What is retrained and handed over: the content of `winner.json`."""

    candidate: Candidate
    role: Role
    trainable_parameters: int
    choice: Choice
    reason: str = Field(description="the decision in words, with its numbers")
    baseline: Candidate = Field(description="the tuned full-depth LoRA it is compared with")
    baseline_parameters: int
    finalists: tuple[Finalist, ...]
    tolerance: float = Field(default=0.0, description="what does not matter, as a share of the baseline's loss")
    training_steps: int | None = Field(default=None, description="of the final training; None before it has begun")
    trainings: tuple[Trained, ...] = Field(default=(), description="of winner and baseline; empty before their end")

    @property
    def is_open(self) -> bool:
        """Whether it is full depth at two rates, of which the final training tells the better."""
        return self.choice is Choice.UNCOMPARED and self.candidate != self.baseline

    def is_behind(self, evaluation: Evaluation) -> bool:
        """Whether the test split shows it to be worse than full depth, by as much as matters."""
        comparison = evaluation.comparison(Arm.WINNER, Arm.FULL_DEPTH, Metric.LOSS)
        if comparison is None or comparison.difference.low <= 0:
            return False
        return comparison.difference.mean > self.tolerance * evaluation.arm(Arm.FULL_DEPTH).loss

    def distinct(self, evaluation: Evaluation) -> Evaluation:
        """Without the winner's arm where the winner is the baseline: it is one training, not two equal ones."""
        if self.candidate != self.baseline:
            return evaluation
        return evaluation.model_copy(
            update={
                "arms": tuple(arm for arm in evaluation.arms if arm.arm is not Arm.WINNER),
                "comparisons": tuple(each for each in evaluation.comparisons if each.arm is not Arm.WINNER),
            }
        )

    def trained(self, candidate: Candidate) -> Trained | None:
        """What came of its final training; None for one that had none."""
        return next((each for each in self.trainings if each.candidate == candidate), None)

    def as_trained(self, candidate: Candidate) -> Candidate:
        """At the rate of its final training, where that had to be lowered."""
        trained = self.trained(candidate)
        return candidate.model_copy(update={"learning_rate": trained.learning_rate}) if trained else candidate

    @property
    def steps_trained(self) -> int | None:
        """Of the winner's final training; what was planned where it has not ended."""
        trained = self.trained(self.candidate)
        return trained.steps if trained else self.training_steps
