"""A plan: what a budget buys on this machine, decided before anything is searched."""

from __future__ import annotations

from pydantic import Field

from bandsearch.values.fidelity import Fidelity
from bandsearch.values.value import Value

# A rung is so many times as long as the one before it, and one in so many of those that reach a rung goes on.
ETA = 3
# Places on its way at which a final training is read.
VALIDATIONS = 8
# The final trainings: winner and baseline.
ARMS = 2
# Examples that an engine is given to score at a time. Whoever else scores, these share their passes.
EVALUATION_ROWS = 64


class SharedStep(Value):
    """A step of one candidate that so many engines share."""

    engines: int = Field(ge=1)
    seconds: float = Field(gt=0)


class Costs(Value):
    """Measured on one warm engine, full-depth LoRA on all linears, so an upper bound for narrower bands."""

    seconds_per_step: float = Field(gt=0, description="one candidate by itself")
    packing: int = Field(ge=1, description="candidates trained in one pass, as many as pay")
    seconds_per_packed_step: float = Field(gt=0, description="a step of that many together")
    shared_steps: tuple[SharedStep, ...] = Field(default=(), description="one candidate on several engines together")
    seconds_per_validation: float = Field(ge=0, description="one pass over the validation examples")
    seconds_per_test_loss: float = Field(ge=0, description="one test example, loss only")
    seconds_per_generation: float = Field(ge=0, description="one test example, greedy generation")
    seconds_per_retention: float = Field(default=0.0, ge=0, description="one text, with and without the adapter")
    load_seconds: float = Field(ge=0, description="wall clock until the plan is made: imports, model load, timing")
    peak_memory_bytes: int = Field(ge=0, description="one engine")

    @property
    def seconds_per_candidate_step(self) -> float:
        """A candidate's share of a step of a full pass."""
        return self.seconds_per_packed_step / self.packing

    def step_on(self, engines: int) -> SharedStep:
        """The fastest step of one candidate that has so many engines, on all of them or on fewer; one that has none
        takes its turn on one."""
        alone = SharedStep(engines=1, seconds=self.seconds_per_step)
        fitting = [step for step in self.shared_steps if step.engines <= engines]
        return min((alone, *fitting), key=lambda step: step.seconds)

    def with_divergence(self, texts: int) -> Costs:
        """Where every validation also measures the divergence from the base on `texts` texts."""
        more = self.seconds_per_validation + texts * self.seconds_per_retention
        return self.model_copy(update={"seconds_per_validation": more})


class StagePlan(Value):
    name: str
    seconds: float = Field(ge=0, description="wall clock")
    detail: str


class Plan(Value):
    """All counts are what the stages are given; `stages` add up to the budget's wall time."""

    engines: int = Field(ge=1)
    packing: int = Field(ge=1, description="candidates an engine trains side by side; 1 where a seed must decide all")
    costs: Costs
    wall_seconds: float | None
    batch_size: int
    full_steps: int = Field(ge=1)
    wanted_steps: int | None = Field(default=None, description="what the epochs, or --steps, ask for; None: full_steps")
    rungs: tuple[int, ...] = Field(min_length=1, description="steps at which the search compares, ascending")
    trial_limit: int | None = Field(description="stop proposing after this many; None: until the time is up")
    expected_trials: int
    confirm_steps: int
    confirm_seeds: int = Field(ge=1)
    confirm_texts: int = Field(default=0, ge=0, description="texts on which each of these is read for what it forgot")
    finalists: int = Field(ge=0, description="0: nothing can be compared, full depth is handed over")
    final_trainings: int = Field(
        default=ARMS,
        ge=1,
        le=ARMS,
        description="winner and baseline, or else rates of full depth, the better of which is kept",
    )
    validation_examples: int = Field(ge=1)
    test_examples: int = Field(ge=1)
    generated_examples: int = Field(ge=0)
    retention_texts: int = Field(default=0, ge=0, description="texts on which it is measured what is forgotten")
    stages: tuple[StagePlan, ...]
    advice: str = Field(default="", description="where the budget is too small to search in, what would be enough")
    disk_bytes: int
    memory_bytes: int

    @property
    def compares(self) -> bool:
        """Whether anything is searched for and confirmed beside full depth."""
        return self.finalists > 0

    def final_fidelity(self, steps: int, seed: int) -> Fidelity:
        return Fidelity.final(
            steps, batch_size=self.batch_size, seed=seed, validation_examples=self.validation_examples
        )

    @property
    def evaluated(self) -> int:
        """Arms beside the base: winner and baseline, which are one where nothing is compared."""
        return ARMS if self.compares else 1

    def seconds_of(self, stage: str) -> float:
        return next(part.seconds for part in self.stages if part.name == stage)
