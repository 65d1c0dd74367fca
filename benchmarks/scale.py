"""Scale: every number that decides how large a benchmark is and how long it takes."""

from __future__ import annotations

from pydantic import Field

from bandsearch.values.value import Value


class Shape(Value):
    """The sizes of a llama-shaped decoder with random weights: they decide its speed and say nothing of quality."""

    layers: int = Field(ge=1)
    width: int = Field(ge=32)
    inner: int = Field(ge=32)
    heads: int = Field(ge=1)
    key_heads: int = Field(ge=1)
    vocabulary: int = Field(ge=300)


class Lengths(Value):
    """Words of an example: lognormal with `median` and `sigma`, cut to the range; sigma 0 gives one length to all."""

    median: int = Field(ge=8)
    sigma: float = Field(ge=0)
    shortest: int = Field(ge=8)
    longest: int = Field(ge=8)


class Scale(Value):
    """`shape` None is the embedded demo model. All trials train to the last of `rungs`; all evaluate at each of them.

    `naive_trials` and `strong_trials` are how many candidates those arms train in a round, the first of them once more
    at its end; ours trains all of them.
    `task` names a task of the demo model as the data; None generates `rows` of `lengths`.
    """

    name: str
    shape: Shape | None
    task: str | None = None
    lengths: Lengths
    rows: int = Field(ge=10)
    batch_size: int = Field(ge=1)
    rungs: tuple[int, ...] = Field(min_length=1)
    validation_examples: int = Field(ge=1)
    rates: float = Field(gt=0, description="factor on the candidates' learning rates, for what the model bears")
    candidates: int = Field(ge=1, le=24)
    rounds: int = Field(ge=1)
    naive_trials: int = Field(ge=1)
    strong_trials: int = Field(ge=1)
    search_trials: int = Field(ge=0, description="most candidates that B screens; 0 leaves B out")
    search_minutes: float | None = Field(default=None, gt=0, description="after which B's search is at its end")
    probe_steps: int = Field(ge=1, description="the probe's deadline in training steps")
    full_steps: int = Field(ge=1, description="the retraining of both winners")
    full_seeds: int = Field(default=5, ge=2, description="seeds of it, since one says little")
    choose_threads: bool = Field(default=False, description="measure whether the plain arms gain from all cores")
    dtype: str = "float32"
    seed: int = 0

    @property
    def steps(self) -> int:
        return self.rungs[-1]


class Study(Value):
    """What a benchmark consists of. In the one line of JSON the figures of A are those of `main`, that of B the first.

    Ablations and scaling curves are many, so they have a smaller scale of their own; None leaves them out. All its
    candidates are trained where levers are compared, `count` of them elsewhere.
    """

    name: str
    main: Scale
    others: tuple[Scale, ...] = ()
    ablated: Scale | None = None
    count: int = Field(default=8, ge=1, description="candidates of every other ratio and of every point of a curve")
    depths: tuple[int, ...] = ()
    widths: tuple[int, ...] = ()
    packings: tuple[int, ...] = ()
    data_sizes: tuple[int, ...] = ()
    batch_sizes: tuple[int, ...] = ()


UNIFORM = Lengths(median=77, sigma=0.0, shortest=77, longest=77)
BENCH_SHAPE = Shape(layers=16, width=512, inner=1408, heads=8, key_heads=8, vocabulary=32_000)
# Sizes of Qwen2.5-7B.
SEVEN_B_SHAPE = Shape(layers=28, width=3584, inner=18_944, heads=28, key_heads=4, vocabulary=152_064)

BENCH = Scale(
    name="bench",
    shape=BENCH_SHAPE,
    lengths=Lengths(median=48, sigma=0.6, shortest=16, longest=192),
    rows=240,
    batch_size=4,
    rungs=(2, 6, 18),
    validation_examples=16,
    rates=1.25,
    candidates=24,
    rounds=1,
    naive_trials=3,
    strong_trials=2,
    search_trials=0,
    probe_steps=15,
    full_steps=36,
)
DEMO = BENCH.model_copy(
    update={"name": "demo", "shape": None, "lengths": Lengths(median=32, sigma=0.5, shortest=12, longest=96)}
    | {"rows": 480, "batch_size": 8, "rungs": (5, 15, 45), "validation_examples": 32}
    | {"candidates": 12, "naive_trials": 2}
    | {"probe_steps": 60, "full_steps": 90, "choose_threads": True, "rates": 1.0}
)
# Screening needs a base that knows something, a task that it does not, and a last rung far above the first.
SCREENED = DEMO.model_copy(
    update={"name": "demo:words", "task": "words", "batch_size": 16, "candidates": 24, "search_minutes": 3}
    | {"rungs": (10, 30, 90, 270), "validation_examples": 64, "search_trials": 216, "full_steps": 540}
)
CONTROL = BENCH.model_copy(
    update={"name": "bench, uniform length", "lengths": UNIFORM, "candidates": 8, "naive_trials": 2}
)
# Ablations and curves are many runs, each of which starts its engines anew. Two epochs for three candidates of every
# start, so that prefix states are met again by the candidate that made them and by others.
ABLATED = BENCH.model_copy(
    update={
        "name": "small",
        "shape": Shape(layers=8, width=256, inner=704, heads=4, key_heads=4, vocabulary=8000),
        "batch_size": 8,
        "rungs": (2, 4, 12),
        "rows": 60,
        "validation_examples": 6,
        "candidates": 12,
    }
)
SEVEN_B = BENCH.model_copy(
    update={"name": "7B", "shape": SEVEN_B_SHAPE, "dtype": "bfloat16", "rows": 1000, "batch_size": 16, "rates": 0.1}
    | {"lengths": Lengths(median=180, sigma=0.7, shortest=24, longest=1000), "validation_examples": 64}
    | {"rungs": (3, 9, 27), "rounds": 3, "naive_trials": 2, "search_trials": 72, "probe_steps": 60, "full_steps": 81}
)

# Shorter trials in one round, and as many candidates as the time allows: ten minutes are to do on slow processors too.
QUICK = Study(
    name="quick",
    main=BENCH.model_copy(update={"rungs": (2, 4, 12), "naive_trials": 2, "strong_trials": 1}),
    others=(
        SCREENED.model_copy(
            update={"candidates": 8, "strong_trials": 1, "search_minutes": 1.5} | {"full_steps": 270, "full_seeds": 3}
        ),
    ),
)
FULL = Study(
    name="cpu",
    main=BENCH,
    others=(CONTROL, DEMO, SCREENED),
    ablated=ABLATED,
    count=4,
    depths=(4, 8, 16),
    widths=(128, 256, 512),
    packings=(1, 2, 4),
    data_sizes=(48, 96, 192),
    batch_sizes=(1, 4, 16),
)
# One training of each plain arm and no curves: for an accelerator that is at hand for ten minutes.
GPU_QUICK = Study(
    name="cuda-quick",
    main=SEVEN_B.model_copy(update={"rungs": (2, 4, 12), "rounds": 1, "naive_trials": 1, "search_trials": 0}),
)
GPU = Study(
    name="cuda",
    main=SEVEN_B,
    ablated=SEVEN_B.model_copy(
        update={"name": "7B, small", "batch_size": 8, "rungs": (2, 6, 18), "candidates": 12}
        | {"rows": 90, "validation_examples": 8}
    ),
    count=4,
    packings=(1, 2, 4, 8),
    data_sizes=(200, 400, 800),
    batch_sizes=(2, 4, 8, 16),
)
