"""A run's specification: everything a person decides. Two runs with equal specs do the same."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field, model_validator

from bandsearch.values.budget import Budget
from bandsearch.values.errors import UsageError
from bandsearch.values.levers import Levers
from bandsearch.values.space import SearchSpace
from bandsearch.values.value import Value

# Of tuned full depth's validation loss, what is not worth a larger adapter.
TOLERANCE = 0.01
# Tokens, prompt and completion together, where nobody says how many.
DEFAULT_LENGTH = 1024
# What every generator of random numbers takes, and what is made of it for others still fits.
MOST_SEED = 2**31 - 1
# Far from where step numbers stop to be exact.
MOST_EPOCHS = 1e6


class Objective(StrEnum):
    """What the search looks for: a low validation loss, or its Pareto front against trainable parameters. `retention`
    searches for the loss, and hands over which of the confirmed candidates within noise stays closest to the base.
    """

    LOSS = "loss"
    PARETO = "pareto"
    RETENTION = "retention"


class PriorSource(StrEnum):
    """Where a search takes its first candidates from, beside its baselines and its own probe."""

    NONE = "none"
    ATLAS = "atlas"


class ModelSpec(Value):
    """`name` is an alias, a hub id or a local directory; `dtype` "auto" is bf16 on a GPU that computes in
    it and fp32 elsewhere; "nf4" is a base in 4 bits (QLoRA, arXiv 2305.14314)."""

    name: str
    revision: str | None = None
    dtype: str = "auto"
    trust_remote_code: bool = False


class ChatTemplate(Value):
    """A jinja chat template. `name` is that of its file, or the one it is known by; `text` is kept because the file may
    change or vanish before a run is resumed."""

    name: str
    text: str


class DataSpec(Value):
    """`name` is a file, a hub id with or without `@revision`, or `demo:<task>`; so are those whose rows come `also`.
    `validation` and `test` are files whose rows take the place of what the others have for it. `columns` are read under
    other names than they have. `max_length` in tokens, prompt and completion together; None: DEFAULT_LENGTH, unless
    that cuts much. `template` writes conversations in place of the model's own."""

    name: str
    also: tuple[str, ...] = ()
    validation: str | None = None
    test: str | None = None
    config: str | None = None
    split: str | None = None
    columns: dict[str, str] = Field(default_factory=dict)
    max_length: int | None = Field(default=None, ge=8)
    max_examples: int | None = Field(default=None, ge=1)
    template: ChatTemplate | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *self.also)

    @model_validator(mode="after")
    def _named_once(self) -> DataSpec:
        names = [name.casefold() for name in self.columns.values()]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UsageError(f"Two columns are to be read as {twice}.", "Name one of them.")
        return self


class TrainSpec(Value):
    """The full training of the winner. `steps` overrules `epochs`."""

    epochs: float = Field(default=3.0, gt=0, le=MOST_EPOCHS)
    steps: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=16, ge=1)


class RunSpec(Value):
    """The content of `spec.yaml`. A budget, a number of trials, or both (then both are kept)."""

    model: ModelSpec
    data: DataSpec
    train: TrainSpec = TrainSpec()
    space: SearchSpace
    budget: Budget | None = None
    trials: int | None = Field(default=None, ge=1)
    objective: Objective = Objective.LOSS
    tolerance: float = Field(
        default=TOLERANCE,
        ge=0,
        lt=1,
        description="differences in validation loss that do not matter, as a share of tuned full depth's: less is no "
        "win, and the smallest adapter that is no worse by more is handed over",
    )
    levers: Levers = Levers()
    prior: PriorSource = PriorSource.NONE
    atlas: str | None = Field(
        default=None, description="directory of the atlas; None: BANDSEARCH_ATLAS, or the user's cache"
    )
    seed: int = Field(default=0, ge=0, le=MOST_SEED)
    tasks: tuple[str, ...] = Field(default=(), description="lm-eval tasks to run on base, baseline and winner")
    task_directory: str | None = Field(default=None, description="folder with local lm-eval task YAML files")
    task_limit: int | None = Field(default=None, ge=1, description="documents per lm-eval task")
    task_chat: bool | None = Field(
        default=None, description="whether tasks are asked through a chat template; None: where the data are"
    )
    num_fewshot: int | None = Field(default=None, ge=0, description="shots per document; None: as each task says")
    retention: str | None = Field(
        default=None, description="texts of the base's own kind; None: the neutral ones that come along"
    )

    @model_validator(mode="after")
    def _bounded(self) -> RunSpec:
        if self.budget is None and self.trials is None:
            raise UsageError("Neither a budget nor a number of trials was given.", "Add --budget 45min or --trials 20.")
        return self
