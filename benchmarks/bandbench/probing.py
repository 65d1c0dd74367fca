"""Probing: what a run's probe finds on a task in the time that budgets of different size give it."""

from __future__ import annotations

from pathlib import Path

from bandsearch.data.dataset import prepare
from bandsearch.engine.engine import Engine
from bandsearch.engine.measure import measure_costs
from bandsearch.models.aliases import resolve
from bandsearch.models.families import layout_of
from bandsearch.models.loading import load_model
from bandsearch.models.tokenizer import load_tokenizer
from bandsearch.probe.effort import ProbeSettings
from bandsearch.probe.probe import run_probe
from bandsearch.run.planning import probe_seconds
from bandsearch.values.profile import SensitivityProfile
from bandsearch.values.space import SearchSpace
from bandsearch.values.spec import DataSpec, ModelSpec
from benchmarks.bandbench.build import MODEL
from benchmarks.bandbench.probes import LADDER, keep_probes, load_probes
from benchmarks.bandbench.table import load_table


def take_probes(folder: Path, task: str) -> None:
    """Write what `<task>.probes.json` beside the task's table lacks, on one core, as the table's trainings.

    What a budget gives them goes by what the table cost: one that has grown since wants its probes taken again.
    """
    table, known = load_table(folder, task), load_probes(folder, task)
    lacking = [share for share in LADDER if share not in known]
    if table is None or not lacking:
        return
    header, source = table.header, resolve(ModelSpec(name=MODEL))
    tokenizer, model = load_tokenizer(source), load_model(source, "float32", "cpu")
    engine = Engine(model, layout_of(model), tokenizer, prepare(DataSpec(name=f"demo:{task}"), tokenizer, 0))
    try:
        costs = measure_costs(engine, header.batch_size, header.validation_examples)
        space = SearchSpace(name=task, alpha=header.alpha)

        def probe(share: float) -> SensitivityProfile:
            deadline = probe_seconds(share * table.exhaustive_seconds, costs)
            return run_probe(
                engine,
                ProbeSettings(seed=0, batch_size=header.batch_size, space=space, costs=costs, deadline=deadline),
            )

        keep_probes(folder, task, {**known, **{share: probe(share) for share in lacking}})
    finally:
        engine.close()
