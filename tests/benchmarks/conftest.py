"""A workload as small as one can be."""

from __future__ import annotations

import pytest

from benchmarks.scale import BENCH, Lengths, Scale, Shape
from benchmarks.workload import Workload, make_workload

TINY = Shape(layers=4, width=64, inner=128, heads=2, key_heads=2, vocabulary=400)


@pytest.fixture(scope="session")
def scale() -> Scale:
    changes = {"name": "tiny", "shape": TINY, "rows": 80, "batch_size": 4, "rungs": (1, 2), "validation_examples": 8}
    counts = {"candidates": 3, "rounds": 1, "naive_trials": 1, "strong_trials": 1, "search_trials": 3}
    lengths = Lengths(median=24, sigma=0.5, shortest=8, longest=60)
    return BENCH.model_copy(
        update=changes | counts | {"lengths": lengths, "rates": 3.0, "probe_steps": 1, "full_steps": 2, "full_seeds": 2}
    )


@pytest.fixture(scope="session")
def workload(scale: Scale, tmp_path_factory: pytest.TempPathFactory) -> Workload:
    return make_workload(scale, tmp_path_factory.mktemp("bench") / "tiny", "cpu")
