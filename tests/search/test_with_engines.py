"""The search and the confirmation on real engines: a tiny model that learns a tiny task."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
from surface import MemoryRecords, plan, profile

from bandsearch.adapters.lora import trainable_parameters
from bandsearch.engine.handles import EngineHandles
from bandsearch.engine.pool import EnginePool
from bandsearch.engine.setup import EngineSetup
from bandsearch.models.aliases import Source, resolve
from bandsearch.models.loading import summarize
from bandsearch.search.confirm import confirm
from bandsearch.search.search import run_search
from bandsearch.values.layout import Layout
from bandsearch.values.profile import RateRange
from bandsearch.values.space import SearchSpace
from bandsearch.values.spec import DataSpec, ModelSpec
from bandsearch.values.trial import TrialState


@pytest.fixture(scope="module")
def work(
    tiny_model: Callable[[str], Path],
    kept_data: Callable[[Source, DataSpec], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[EnginePool, Layout]]:
    data = tmp_path_factory.mktemp("data") / "colours.jsonl"
    rows = [{"prompt": f"What follows {n}?", "completion": f" {n + 1}"} for n in range(120)]
    data.write_text("\n".join(map(json.dumps, rows)))
    source = resolve(ModelSpec(name=str(tiny_model("qwen2"))))
    kept = kept_data(source, DataSpec(name=str(data), max_length=64))
    setup = EngineSetup(source=source, data=kept, dtype="float32", device="cpu", threads=1)
    ray.shutdown()
    pool = EnginePool.start([setup])
    yield pool, summarize(source).layout
    pool.stop()


def test_who_is_given_handles_loads_nothing_that_an_engine_is_made_of(work: tuple[EnginePool, Layout]) -> None:
    """Every trial is a process of its own; with the engine's libraries it took four times as long to start."""

    def loaded(handles: EngineHandles) -> list[str]:
        assert handles.get(handles.submit(0, "holds", "nobody")) is False
        return sorted({"torch", "transformers", "peft", "datasets"} & sys.modules.keys())

    assert ray.get(ray.remote(loaded).options(num_cpus=0.05).remote(work[0].handles)) == []


def test_a_search_on_an_engine_is_confirmed_and_comes_out_alike_twice(
    work: tuple[EnginePool, Layout], tmp_path: Path
) -> None:
    pool, layout = work
    planned = plan(trials=7, rungs=(2, 4), full_steps=9, confirm_seeds=2, finalists=2)
    knowledge = profile(layout.layer_count, RateRange(low=1e-3, best=1e-2, high=5e-2))
    runs = []
    for attempt in range(2):
        folder, records = tmp_path / str(attempt), MemoryRecords()
        folder.mkdir()
        results = run_search(
            pool,
            space=SearchSpace(name="tiny"),
            layout=layout,
            profile=knowledge,
            plan=planned,
            seed=1,
            records=records,
            study_path=folder / "study.db",
            scratch=folder,
            wall_left=lambda: float("inf"),
        )
        winner = confirm(
            pool,
            results=results,
            layout=layout,
            profile=knowledge,
            plan=planned,
            seed=1,
            records=records,
            wall_left=lambda: float("inf"),
        )
        runs.append(([(r.candidate, r.state, [p.loss for p in r.points]) for r in results], winner))
    assert runs[0] == runs[1]
    found, winner = runs[0]
    assert len(found) == 7
    assert all(state in (TrialState.COMPLETE, TrialState.PRUNED) for _, state, _ in found)
    assert winner.trainable_parameters == trainable_parameters(winner.candidate, layout)
    assert all(len(finalist.losses) == 2 for finalist in winner.finalists)


def test_a_rate_beyond_all_measure_is_a_diverged_result(work: tuple[EnginePool, Layout], tmp_path: Path) -> None:
    pool, layout = work
    results = run_search(
        pool,
        space=SearchSpace(name="tiny"),
        layout=layout,
        profile=profile(layout.layer_count, RateRange(low=1e25, best=1e30, high=1e35)),
        plan=plan(trials=2, rungs=(4, 8), full_steps=24),
        seed=1,
        records=MemoryRecords(),
        study_path=tmp_path / "study.db",
        scratch=tmp_path,
        wall_left=lambda: float("inf"),
    )
    assert [result.state for result in results] == [TrialState.DIVERGED] * 2
    assert all("diverged" in result.reason for result in results)
