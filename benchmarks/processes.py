"""Fresh processes: runs a plain arm's module, and times it from outside."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

from bandsearch.values.candidate import Candidate
from bandsearch.values.value import Value
from benchmarks.costs import total_flops
from benchmarks.job import OUT_OF_MEMORY, Answer, Job, Trained
from benchmarks.spread import Spread
from benchmarks.workload import Workload

MESSAGE = 2000


class Timing(Value):
    """Of a plain arm: what it took to start each of its processes, and the trials they trained after that."""

    starts: tuple[float, ...]
    trials: tuple[Trained, ...]
    peak_memory_bytes: int

    @property
    def start_seconds(self) -> float:
        return median(self.starts)

    def seconds(self, workload: Workload, candidates: Sequence[Candidate], *, starts: int) -> Spread:
        """What `candidates` take with so many process starts, by their operations: at the median of the seconds per
        operation that the measured trials took, and at the lowest and highest, so that one disturbed trial shows."""
        volume = workload.volume(workload.proxy)
        whole, before = total_flops(volume, candidates), starts * self.start_seconds
        rates = [trial.seconds / volume.plain_flops(trial.candidate) for trial in self.trials]
        return Spread.of([before + whole * rate for rate in rates])


def run_naive(
    workload: Workload,
    candidates: Sequence[Candidate],
    threads: int | None = None,
    *,
    side_by_side: int = 1,
    shuffled: bool = False,
    changes: Mapping[str, Any] | None = None,
) -> Timing:
    """A process per trial, one after another with all cores, or several that share the cores.

    `side_by_side` processes take as long together as they are said to take one after another. `changes`: what of the
    workload's job is to be otherwise.
    """
    threads = threads or max(1, workload.inventory.cores // side_by_side)
    jobs = [
        workload.job((candidate,), threads, shuffled=shuffled).model_copy(update=changes) for candidate in candidates
    ]
    with ThreadPoolExecutor(side_by_side) as lanes:
        timings = list(lanes.map(lambda job: _timed("benchmarks.naive", job), jobs))
    together = pooled(timings)
    return Timing(
        starts=tuple(seconds / side_by_side for seconds in together.starts),
        trials=tuple(trial.model_copy(update={"seconds": trial.seconds / side_by_side}) for trial in together.trials),
        peak_memory_bytes=together.peak_memory_bytes * side_by_side,
    )


def pooled(timings: Sequence[Timing]) -> Timing:
    """All their starts and trials, the largest memory."""
    return Timing(
        starts=tuple(seconds for timing in timings for seconds in timing.starts),
        trials=tuple(trial for timing in timings for trial in timing.trials),
        peak_memory_bytes=max(timing.peak_memory_bytes for timing in timings),
    )


def run_strong(workload: Workload, candidates: Sequence[Candidate], threads: int | None = None) -> Timing:
    """One process for all of them."""
    return _timed("benchmarks.strong", workload.job(tuple(candidates), threads))


def _timed(module: str, job: Job) -> Timing:
    """With the most rows per pass that fit into memory; tries that did not fit are not charged."""
    rows = _fitting.get((module, job.model), job.pass_rows)
    while True:
        started = time.perf_counter()
        answer = _run(module, job.model_copy(update={"pass_rows": min(rows, job.pass_rows)}))
        wall = time.perf_counter() - started
        if answer is not None:
            break
        rows = _fitting[module, job.model] = min(rows, job.pass_rows) // 2
        if not rows:
            raise MemoryError(f"{module}: not even one example at a time fits into the device's memory.")
    return Timing(
        starts=(wall - sum(trial.seconds for trial in answer.trials),),
        trials=answer.trials,
        peak_memory_bytes=answer.peak_memory_bytes,
    )


_fitting: dict[tuple[str, str], int] = {}


def _run(module: str, job: Job) -> Answer | None:
    """None where the passes do not fit into memory."""
    root = Path(__file__).parents[1]
    environment = os.environ | {
        "OMP_NUM_THREADS": str(job.threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")])),
    }
    with tempfile.TemporaryDirectory() as folder:
        question, reply = Path(folder) / "job.json", Path(folder) / "answer.json"
        question.write_text(job.model_dump_json())
        done = subprocess.run(
            [sys.executable, "-m", module, str(question), str(reply)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == OUT_OF_MEMORY:
            return None
        if done.returncode:
            raise RuntimeError(f"{module} failed:\n{done.stderr[-MESSAGE:]}")
        return Answer.model_validate_json(reply.read_text())


def best_threads(workload: Workload) -> int:
    """One thread or all cores, whichever trains a trial of the plain loop faster: small products gain nothing."""
    if workload.device != "cpu" or not workload.scale.choose_threads:
        return workload.inventory.cores
    candidate = workload.candidates[:1]
    return min(
        {1, workload.inventory.cores}, key=lambda threads: run_strong(workload, candidate, threads).trials[0].seconds
    )
