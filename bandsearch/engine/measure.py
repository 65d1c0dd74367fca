"""What work costs on a warm engine, and how many candidates in one pass pay."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Sequence

import torch

from bandsearch.engine.engine import Engine
from bandsearch.engine.failures import OutOfMemoryError
from bandsearch.engine.scoring import answer_length
from bandsearch.values.band import Band
from bandsearch.values.candidate import Candidate
from bandsearch.values.fidelity import Fidelity
from bandsearch.values.plan import EVALUATION_ROWS, Costs

# Readings of one figure, and the seconds after which no more are taken: what disturbs a reading is short, and where a
# step takes long a small budget would be spent before it is planned.
STEPS, PATIENCE = 3, 4.0
# Two readings that differ by no more than this share are enough: with a third the median would still lie between them.
ALIKE = 0.05
# Candidates per pass are doubled for as long as that makes each of them cheaper by this share.
WORTHWHILE = 0.05
MOST_PACKED = 8
# Examples that are timed first, to see whether more would take long, and of the validation split in all.
FEW, VALIDATED = 4, 64
# Answers that are timed on a CPU. An accelerator takes hardly longer for a whole batch than for one, once warm.
GENERATED = 16
# By so many references it is decided whether answers are generated.
JUDGED = 256


def measure_costs(engine: Engine, batch_size: int, validation_examples: int) -> Costs:
    """Time real full-depth steps of one candidate and of packs, a validation and a few generations. Leaves no trace.

    Raises OutOfMemoryError where not every training example can be trained on at full depth.
    """
    _try_longest(engine, batch_size)
    alone = _seconds_per_step(engine, batch_size)
    # Of a pass that takes long nothing is saved by having fewer of them.
    packing, share = (engine.levers.packing or 1, 1.0) if alone > PATIENCE else best_packing(engine, batch_size)
    session = engine.admit(_full_depth(engine), Fidelity(steps=1, batch_size=batch_size, seed=0))
    validated = min(validation_examples, len(engine.dataset.validation))
    lengths = engine.dataset.validation.lengths[:validated].tolist()
    per_example = seconds_each(lambda count: engine.losses("validation", session, count), lengths, VALIDATED)
    most, warmed_up = (GENERATED, 0) if engine.device.type == "cpu" else (EVALUATION_ROWS, FEW)
    generated = min(len(engine.dataset.test), most)
    if warmed_up:
        engine.generate("test", session, min(generated, warmed_up))
    # Where nothing is generated it costs nothing.
    length = answer_length(engine.tokenizer, engine.dataset.test[:JUDGED])
    per_generation = _timed(lambda: engine.generate("test", session, generated, length)) / generated if length else 0.0
    engine.evict(session)
    return Costs(
        seconds_per_step=alone,
        packing=packing,
        seconds_per_packed_step=share * packing * alone,
        seconds_per_validation=per_example * validated,
        seconds_per_test_loss=per_example,
        seconds_per_generation=per_generation,
        load_seconds=0.0,
        peak_memory_bytes=_peak_memory(engine.device),
    )


def _try_longest(engine: Engine, batch_size: int) -> None:
    """Raises OutOfMemoryError where a training would, once it came to its longest example: that may be when the budget
    is spent. Less work than a few average steps, and its peak is that of the plan."""
    session = engine.admit(_full_depth(engine), Fidelity(steps=1, batch_size=batch_size, seed=0))
    try:
        engine.try_longest(session)
    finally:
        engine.evict(session)


def best_packing(engine: Engine, batch_size: int) -> tuple[int, float]:
    """Candidates per pass, and what that pass takes as a share of passes for each of them.

    Measured on the upper half of the layers, which is what a search trains on average: at full depth the products are
    so much larger than the rest that nothing seems to be saved.
    """
    alone = _seconds_per_pass(engine, 1, batch_size)
    if engine.levers.packing is not None:
        return engine.levers.packing, _seconds_per_pass(engine, engine.levers.packing, batch_size) / (
            engine.levers.packing * alone
        )
    # What a pass costs beside its rows, by one of a single row: a pass saved saves no more than that. Of one row it
    # cannot be told apart.
    beside = alone
    if batch_size > 1:
        beside = (batch_size * _seconds_per_pass(engine, 1, 1) - alone) / (batch_size - 1)
    packing, packed = 1, alone
    while 2 * packing <= MOST_PACKED and beside >= 2 * packed * WORTHWHILE:
        try:
            seconds = _seconds_per_pass(engine, 2 * packing, batch_size)
        except OutOfMemoryError:
            break
        if seconds > 2 * packed * (1 - WORTHWHILE):
            break
        packing, packed = 2 * packing, seconds
    return packing, packed / (packing * alone)


def _seconds_per_pass(engine: Engine, candidates: int, batch_size: int) -> float:
    """Of one optimiser step of so many candidates on the upper half of the layers, over the same rows every time: after
    the first time their prefix is there."""
    layers = engine.layout.layer_count
    bands = (Band(start=layers // 2, stop=layers),)
    half = _full_depth(engine).model_copy(update={"bands": bands})

    def seconds() -> float:
        sessions: list[str] = []
        try:
            for _ in range(candidates):
                sessions.append(engine.admit(half, Fidelity(steps=1, batch_size=batch_size, seed=0)))
            return _timed(lambda: _train(engine, sessions))
        finally:
            for session in sessions:
                engine.evict(session)

    return _usual(seconds)


def seconds_together(engine: Engine, batch_size: int, alone: float) -> float:
    """What a step of one candidate at full depth takes where the engines that were joined share it; all of them are
    asked at once. `alone`: what it takes one of them, seconds."""
    session = engine.admit(_full_depth(engine), Fidelity(steps=STEPS + 1, batch_size=batch_size, seed=0))
    engine.replicate(session)
    # Of all of them the same number of readings, so no clock decides.
    found = [_seconds_per_token(engine, session) for _ in range(1 if alone > PATIENCE else STEPS + 1)]
    engine.evict(session)
    return statistics.median(found[1:] or found) * engine.mean_length(batch_size)


def _seconds_per_step(engine: Engine, batch_size: int) -> float:
    """Of one candidate at full depth."""
    session = engine.admit(_full_depth(engine), Fidelity(steps=STEPS + 1, batch_size=batch_size, seed=0))
    seconds = _usual(lambda: _seconds_per_token(engine, session))
    engine.evict(session)
    return seconds * engine.mean_length(batch_size)


def _seconds_per_token(engine: Engine, session: str) -> float:
    """Of the session's next step, per token of its longest sequence: few steps are timed, and by their lengths they
    differ several times, so what counts is a batch of the length that batches have on average."""
    length = engine.next_length(session)
    return _timed(lambda: _train(engine, [session])) / length


def seconds_each(work: Callable[[int], object], lengths: Sequence[int], most: int) -> float:
    """What one of the examples of these `lengths` (tokens) takes on average, where `work(n)` does the first n of them.

    Measured on `most` of them, or on a few where so many would take long.
    """

    def per_token(count: int) -> float:
        return _timed(lambda: work(count)) / sum(lengths[:count])

    found = per_token(min(FEW, most, len(lengths)))
    if found * sum(lengths[:most]) < PATIENCE:
        found = per_token(min(most, len(lengths)))
    return found * statistics.mean(lengths)


def _train(engine: Engine, sessions: Sequence[str]) -> None:
    failures = engine.train_together(sessions)
    for failure in failures.values():
        for session in sessions:
            engine.evict(session)
        raise failure


def _usual(read: Callable[[], float]) -> float:
    """The median of as many readings as it takes, behind a first that is left out."""
    read()
    started, found = time.monotonic(), [read()]
    while len(found) < STEPS and time.monotonic() - started < PATIENCE:
        if len(found) > 1 and max(found) <= (1 + ALIKE) * min(found):
            break
        found.append(read())
    return statistics.median(found)


def _full_depth(engine: Engine) -> Candidate:
    return Candidate.full_depth(engine.layout.layer_count, rank=16, alpha=16, learning_rate=1e-5)


def _timed(work: Callable[[], object]) -> float:
    _wait_for_accelerator()
    started = time.monotonic()
    work()
    _wait_for_accelerator()
    return time.monotonic() - started


def _wait_for_accelerator() -> None:
    """Until all is done that it was given: an optimiser's step comes after what the host waits for."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _peak_memory(device: torch.device) -> int:
    if device.type == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return int(torch.cuda.max_memory_allocated(device))
