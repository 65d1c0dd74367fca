"""A benchmark: a study measured from beginning to end."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

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
    """Write JSON and table to `out` and return the one line. What is under way goes to stderr."""
    began, where = time.perf_counter(), environment()
    with tempfile.TemporaryDirectory(prefix="bandsearch-bench-") as scratch:
        folder = Path(scratch)
        scales = (study.main, *study.others)
        workloads = [
            measured(make_workload(scale, folder / f"workload-{index}", device)) for index, scale in enumerate(scales)
        ]
        ablations, scaling = None, ()
        if study.ablated is not None:
            ablated = make_workload(study.ablated, folder / "ablated", device)
            say(f"{study.ablated.name}: ablations")
            ablations = measure_ablations(ablated, study.count, study.batch_sizes)
            say(f"{study.ablated.name}: scaling")
            scaling = measure_scaling(ablated, study, folder)
    outcome = Outcome(
        study=study.name,
        seconds=time.perf_counter() - began,
        environment=where,
        workloads=tuple(workloads),
        ablations=ablations,
        scaling=scaling,
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{study.name}.json").write_text(outcome.document())
    (out / f"{study.name}.md").write_text(page(outcome, gpu_measured=(out / f"{GPU.name}.json").exists()))
    return outcome.line()


def measured(workload: Workload) -> Measured:
    """A and, where the scale asks for it, B."""
    scale = workload.scale
    say(f"{scale.name}: A, {scale.rounds} round(s) of {scale.candidates} candidates")
    rounds = measure_rounds(workload)
    equal = equal_math(workload, rounds)
    screening = None
    if scale.search_trials:
        say(f"{scale.name}: B, {scale.search_trials} candidates")
        screening = screen(workload, pooled([each.naive for each in rounds]), list(rounds[-1].ours.trials))
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
