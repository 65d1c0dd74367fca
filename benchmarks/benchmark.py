"""A benchmark: a study measured from beginning to end."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.ablations import measure_ablations
from benchmarks.environment import environment
from benchmarks.equal import equal_math, measure_rounds
from benchmarks.outcome import Measured, Outcome
from benchmarks.processes import pooled
from benchmarks.scale import GPU, Study
from benchmarks.scaling import measure_scaling
from benchmarks.screening import screen
from benchmarks.table import page
from benchmarks.workload import Workload, make_workload


def run(study: Study, device: str, out: Path) -> str:
    """Write JSON and table to `out` after every part, so that a run broken off leaves what it measured; return the one
    line. What is under way goes to stderr.
    """
    began = time.perf_counter()
    outcome = Outcome(
        study=study.name, seconds=0.0, environment=environment(), workloads=(), ablations=None, scaling=()
    )

    def keep(**found: Any) -> None:
        nonlocal outcome
        outcome = outcome.model_copy(update=found | {"seconds": time.perf_counter() - began})
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{study.name}.json").write_text(outcome.document())
        (out / f"{study.name}.md").write_text(page(outcome, gpu_measured=(out / f"{GPU.name}.json").exists()))

    with tempfile.TemporaryDirectory(prefix="bandsearch-bench-") as scratch:
        folder = Path(scratch)
        for index, scale in enumerate((study.main, *study.others)):
            found = measured(make_workload(scale, folder / f"workload-{index}", device))
            keep(workloads=(*outcome.workloads, found))
        if study.ablated is not None:
            ablated = make_workload(study.ablated, folder / "ablated", device)
            say(f"{study.ablated.name}: ablations")
            keep(ablations=measure_ablations(ablated, study.count, study.batch_sizes))
            say(f"{study.ablated.name}: scaling")
            keep(scaling=measure_scaling(ablated, study, folder))
    return outcome.line()


def measured(workload: Workload) -> Measured:
    """A and, where the scale asks for it, B."""
    scale = workload.scale
    say(f"{scale.name}: A, {scale.rounds} round(s) of {scale.candidates} candidates")
    rounds = measure_rounds(workload)
    equal = equal_math(workload, rounds)
    screening = None
    if scale.search_trials:
        say(f"{scale.name}: B, up to {scale.search_trials} candidates")
        screening = screen(workload, pooled([each.naive for each in rounds]), list(rounds[-1].ours.trials))
        say(f"{scale.name}: {screening.trials} candidates in {screening.ours_seconds:.0f} s")
    return Measured(
        scale=scale,
        device=workload.device,
        parameters=workload.summary.parameters,
        layers=workload.layer_count,
        equal=equal,
        screening=screening,
    )


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
