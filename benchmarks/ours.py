"""Our arm: the engines of a run of bandsearch, with as many trials under way as an engine trains in one pass."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any, NamedTuple, TypeVar

from bandsearch.engine.engine import Engine
from bandsearch.engine.measure import best_packing
from bandsearch.engine.pool import EnginePool
from bandsearch.values.candidate import Candidate
from bandsearch.values.fidelity import Fidelity
from bandsearch.values.levers import Levers
from bandsearch.values.trial import Point
from bandsearch.values.value import Value
from benchmarks.job import Trained, peak_memory
from benchmarks.workload import Workload

Item = TypeVar("Item")
Result = TypeVar("Result")
WATCHED_STEPS = 4


class OurTiming(Value):
    """`start_seconds`: Ray, engines, their self-checks and the choice of K; `total_seconds` also holds the end.

    `watched`: what the same few steps took on all engines before the trials and after them, in neither of the two.
    """

    start_seconds: float
    total_seconds: float
    trials: tuple[Trained, ...]
    base_loss: float
    engines: int
    packing: int
    peak_memory_bytes: int
    watched: tuple[float, ...] = ()

    @property
    def warm_seconds(self) -> float:
        return self.total_seconds - self.start_seconds


class Started(NamedTuple):
    """`slots`: for every trial that may be under way at once, the engine it goes to."""

    pool: EnginePool
    slots: list[int]
    packing: int


@contextmanager
def started(workload: Workload, levers: Levers | None = None) -> Iterator[Started]:
    """Engines with an empty prefix cache of their own."""
    with TemporaryDirectory(dir=workload.folder, prefix="cache-") as cache:
        pool = EnginePool.start(workload.setups(Path(cache), levers))
        try:
            with ThreadPoolExecutor(pool.size) as threads:
                packing = min(threads.map(lambda index: _packing(pool, index, workload), range(pool.size)))
            pool.pack(packing)
            # Round the engines, so that the first trials spread over all of them.
            yield Started(pool, list(range(pool.size)) * packing, packing)
        finally:
            pool.stop()


def _packing(pool: EnginePool, index: int, workload: Workload) -> int:
    return pool.apply(index, best_packing, workload.scale.batch_size)[0]


def call(pool: EnginePool, index: int, method: str, *arguments: Any) -> Any:
    return pool.get(pool.submit(index, method, *arguments))


def run_ours(
    workload: Workload,
    candidates: Sequence[Candidate],
    levers: Levers | None = None,
    fidelity: Fidelity | None = None,
    *,
    watched: bool = False,
) -> OurTiming:
    """All candidates, from a cold start to the end of the engines; every adapter is fetched.

    They are admitted by the start of their bands, so that those trained in one pass share a long prefix: the list is
    known beforehand, and no result depends on the order.
    """
    began = time.perf_counter()
    with started(workload, levers) as at:
        starting = time.perf_counter() - began
        before = [_watch(at, workload)] if watched else []
        ready = time.perf_counter()
        queue = sorted(candidates, key=lambda candidate: candidate.layers[0])
        trials = train_all(at, queue, fidelity or workload.proxy, workload.scale.rungs)
        training = time.perf_counter() - ready
        after = [_watch(at, workload)] if watched else []
        base_loss = validation_loss(at.pool, workload)
        memory = sum(at.pool.apply(index, _peak_memory) for index in range(at.pool.size))
        engines, packing = at.pool.size, at.packing
        ending = time.perf_counter()
    return OurTiming(
        start_seconds=starting,
        total_seconds=starting + training + time.perf_counter() - ending,
        trials=tuple(trials),
        base_loss=base_loss,
        engines=engines,
        packing=packing,
        peak_memory_bytes=memory,
        watched=(*before, *after),
    )


def _watch(at: Started, workload: Workload) -> float:
    """Mean seconds of the same few steps at full depth, on every engine at a time, behind one that is left out."""
    candidate = Candidate.full_depth(workload.layer_count, rank=16, alpha=16, learning_rate=1e-5)
    fidelity = workload.proxy.model_copy(update={"steps": 1 + WATCHED_STEPS, "validation_examples": 1})

    def seconds(engine: int) -> float:
        session = call(at.pool, engine, "admit", candidate, fidelity)
        call(at.pool, engine, "advance", session, 1)
        began = time.perf_counter()
        call(at.pool, engine, "advance", session, fidelity.steps)
        found = time.perf_counter() - began
        call(at.pool, engine, "evict", session)
        return found

    with ThreadPoolExecutor(at.pool.size) as threads:
        return mean(threads.map(seconds, range(at.pool.size)))


def train_all(
    at: Started, candidates: Sequence[Candidate], fidelity: Fidelity, rungs: tuple[int, ...]
) -> list[Trained]:
    """In the order of `candidates`."""
    stages = (*(rung for rung in rungs if rung < fidelity.steps), fidelity.steps)
    return in_slots(
        at.slots, candidates, lambda engine, candidate: _train(at.pool, engine, candidate, fidelity, stages)
    )


def in_slots(slots: Sequence[int], items: Sequence[Item], work: Callable[[int, Item], Result]) -> list[Result]:
    """`work(engine, item)` of all items, in their order; a slot that becomes free takes the next. Raises what one of
    them raised."""
    waiting, lock = iter(enumerate(items)), Lock()
    results: dict[int, Result] = {}

    def serve(engine: int) -> None:
        while True:
            with lock:
                place, item = next(waiting, (-1, None))
            if item is None:
                return
            results[place] = work(engine, item)

    with ThreadPoolExecutor(len(slots)) as threads:
        for future in [threads.submit(serve, engine) for engine in slots]:
            future.result()
    return [results[place] for place in range(len(items))]


def _train(pool: EnginePool, engine: int, candidate: Candidate, fidelity: Fidelity, stages: tuple[int, ...]) -> Trained:
    began = time.perf_counter()
    session = call(pool, engine, "admit", candidate, fidelity)
    points: list[Point] = [call(pool, engine, "advance", session, steps) for steps in stages]
    tensors = call(pool, engine, "adapter", session)
    losses = call(pool, engine, "train_losses", session)
    call(pool, engine, "evict", session)
    return Trained(
        candidate=candidate,
        seconds=time.perf_counter() - began,
        train_losses=tuple(losses),
        validation_losses=tuple(point.loss for point in points),
        change=max(float(tensor.abs().max()) for name, tensor in tensors.items() if "lora_B" in name),
    )


def validation_loss(pool: EnginePool, workload: Workload) -> float:
    """Of the bare base, on what the trials are validated on."""
    return token_mean(call(pool, 0, "losses", "validation", None, workload.scale.validation_examples))


def token_mean(losses: Iterable[tuple[float, int]]) -> float:
    pairs = list(losses)
    return sum(loss * tokens for loss, tokens in pairs) / sum(tokens for _, tokens in pairs)


def _peak_memory(engine: Engine) -> int:
    return peak_memory(engine.device.type)
