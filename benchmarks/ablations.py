"""Ablations: what every lever is worth, where the gain comes from, and what the naive arm could do better."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import accumulate
from statistics import median
from tempfile import TemporaryDirectory

from bandsearch.values.candidate import Candidate
from bandsearch.values.levers import Levers
from bandsearch.values.value import Value
from benchmarks.candidates import alike
from benchmarks.ours import OurTiming, run_ours, started, train_all
from benchmarks.processes import run_naive, run_strong
from benchmarks.spread import Spread
from benchmarks.workload import Workload

OFF: dict[str, Levers] = {
    "prefix cache": Levers(prefix_cache=False),
    "packing": Levers(packing=1),
    "supervised head": Levers(supervised_head=False),
    "supervised last layer": Levers(supervised_last_layer=False),
    "unmasked attention": Levers(unmasked_attention=False),
    "fast products": Levers(fast_linear=False),
    "length grouping": Levers(length_grouping=False),
    "all": Levers.none(),
}
ON_GPU = {"Liger kernels": Levers(liger=False)}
ON = {"compile": Levers(compile=True)}
PAYING_TRIALS = 12
# These two are measured so many times, interleaved with the others: what the cache saves is about what noise is.
REPEATED = ("none", "prefix cache")
REPEATS = 3
# Trials of a plain arm where it is compared; the others follow from their operations.
MEASURED = 2


class Lever(Value):
    """`slowdown` is the time without the lever divided by the median time with all of them, engines warm. `packing` is
    the K that was chosen without it, the first time."""

    off: str
    readings: int
    seconds: float
    slowdown: Spread
    packing: int
    peak_memory_bytes: int


class Added(Value):
    """A lever that is off unless asked for, on beside the others. `speedup` is their time without it divided by that
    with it, engines warm; `start_seconds` what a start takes longer on a machine that has compiled nothing before, and
    `pays_after` the steps of training that win it back, None where none do.
    """

    on: str
    readings: int
    seconds: float
    speedup: Spread
    start_seconds: float
    pays_after: float | None


class Ratio(Value):
    """Trials per hour, ours (warm) by strong (warm), at a start layer or at so many tokens per step."""

    at: float
    ratio: float


class Ablations(Value):
    """`cache_pays_after`: trials, one at a time from half depth, until the cache has saved what it cost to build.

    `candidates` and `epochs` are those of the levers' trainings. `naive_variants` are trials per hour relative to the
    naive arm as measured in A.
    """

    candidates: int
    epochs: float
    levers: tuple[Lever, ...]
    added: tuple[Added, ...]
    by_start: tuple[Ratio, ...]
    by_tokens_per_step: tuple[Ratio, ...]
    cache_pays_after: int | None
    naive_variants: dict[str, float]


def measure_ablations(workload: Workload, count: int, batch_sizes: Sequence[int]) -> Ablations:
    """Levers are measured on all candidates of the workload, the rest on `count` each."""
    candidates = workload.candidates[:count]
    levers, added = _levers(workload)
    return Ablations(
        candidates=len(workload.candidates),
        epochs=workload.scale.steps * workload.scale.batch_size / len(workload.dataset.train),
        levers=levers,
        added=added,
        by_start=_by_start(workload, count),
        by_tokens_per_step=_by_tokens(workload, candidates, batch_sizes),
        cache_pays_after=_cache_pays_after(workload),
        naive_variants=_naive_variants(workload, candidates[:MEASURED]),
    )


def _levers(workload: Workload) -> tuple[tuple[Lever, ...], tuple[Added, ...]]:
    off = {"none": Levers(), **OFF, **(ON_GPU if workload.device == "cuda" else {})}
    once = [name for name in off if name not in REPEATED]
    found: dict[str, list[OurTiming]] = {name: [] for name in (*off, *ON)}
    for turn in range(REPEATS):
        for name in (*REPEATED, *once[turn::REPEATS]):
            found[name].append(run_ours(workload, workload.candidates, off[name]))
        for name, levers in ON.items():
            with _nothing_compiled():
                found[name].append(run_ours(workload, workload.candidates, levers))
    usual, steps = found["none"], len(workload.candidates) * workload.scale.steps
    seconds = median(timing.warm_seconds for timing in usual)
    return (
        tuple(_lever(name, found[name], seconds) for name in off),
        tuple(_added(name, found[name], usual, steps) for name in ON),
    )


@contextmanager
def _nothing_compiled() -> Iterator[None]:
    """Inside, engines that start find no kernels that an earlier process has compiled."""
    name = "TORCHINDUCTOR_CACHE_DIR"
    before = os.environ.pop(name, None)
    with TemporaryDirectory() as directory:
        os.environ[name] = directory
        try:
            yield
        finally:
            del os.environ[name]
            if before is not None:
                os.environ[name] = before


def _added(name: str, timings: Sequence[OurTiming], usual: Sequence[OurTiming], steps: int) -> Added:
    seconds = Spread.of([timing.warm_seconds for timing in timings])
    without = median(timing.warm_seconds for timing in usual)
    starting, usual_start = (median(timing.start_seconds for timing in some) for some in (timings, usual))
    return Added(
        on=name,
        readings=len(timings),
        seconds=seconds.median,
        speedup=Spread.of([without / timing.warm_seconds for timing in timings]),
        start_seconds=starting - usual_start,
        pays_after=steps_to_win_back(starting - usual_start, (without - seconds.median) / steps),
    )


def steps_to_win_back(seconds: float, saved: float) -> float | None:
    """How many steps, each shorter by `saved`, make up for `seconds`; None for steps that are no shorter."""
    return max(0.0, seconds) / saved if saved > 0 else None


def _lever(name: str, timings: Sequence[OurTiming], usual: float) -> Lever:
    seconds = Spread.of([timing.warm_seconds for timing in timings])
    return Lever(
        off=name,
        readings=len(timings),
        seconds=seconds.median,
        slowdown=seconds.divided(usual),
        packing=timings[0].packing,
        peak_memory_bytes=max(timing.peak_memory_bytes for timing in timings),
    )


def _by_start(workload: Workload, count: int) -> tuple[Ratio, ...]:
    depth, rates = workload.layer_count, workload.scale.rates
    ratios = []
    for start in sorted({depth * quarter // 4 for quarter in range(4)}):
        candidates = alike(start, depth, count, rates)
        ratios.append(Ratio(at=start, ratio=_ratio(workload, candidates)))
    return tuple(ratios)


def _by_tokens(workload: Workload, candidates: Sequence[Candidate], batch_sizes: Sequence[int]) -> tuple[Ratio, ...]:
    ratios = []
    for size in batch_sizes:
        changed = replace(workload, scale=workload.scale.model_copy(update={"batch_size": size}))
        tokens = changed.volume(changed.proxy).trained_tokens / changed.scale.steps
        ratios.append(Ratio(at=tokens, ratio=_ratio(changed, candidates)))
    return tuple(ratios)


def _ratio(workload: Workload, candidates: Sequence[Candidate]) -> float:
    strong = run_strong(workload, candidates[:MEASURED])
    return strong.seconds(workload, candidates, starts=0).median / run_ours(workload, candidates).warm_seconds


def _cache_pays_after(workload: Workload) -> int | None:
    depth = workload.layer_count
    candidates = alike(depth // 2, depth, PAYING_TRIALS, workload.scale.rates)
    seconds = []
    for cached in (True, False):
        with started(workload, Levers(prefix_cache=cached, packing=1)) as at:
            trials = train_all(at._replace(slots=[0]), candidates, workload.proxy, workload.scale.rungs)
        seconds.append([trial.seconds for trial in trials])
    return pays_after(*seconds)


def pays_after(cached: Sequence[float], plain: Sequence[float]) -> int | None:
    """The number of trials from which on the sum of seconds with the cache stays at or below that without it."""
    behind = [
        number
        for number, (one, other) in enumerate(zip(accumulate(cached), accumulate(plain), strict=True), start=1)
        if one > other
    ]
    after = max(behind, default=0) + 1
    return after if after <= len(cached) else None


def _naive_variants(workload: Workload, candidates: Sequence[Candidate]) -> dict[str, float]:
    plain, shuffled = (
        run_naive(workload, candidates, shuffled=order).seconds(workload, candidates, starts=len(candidates)).median
        for order in (False, True)
    )
    return {"in shuffled order": plain / shuffled}
