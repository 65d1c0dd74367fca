"""Engines on tiny models that learn to count."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from bandsearch.engine.engine import Engine
from bandsearch.engine.setup import EngineSetup
from bandsearch.models.aliases import Source, resolve
from bandsearch.values.spec import DataSpec, ModelSpec


@pytest.fixture(scope="session")
def setup_of(
    tiny_model: Callable[[str], Path],
    kept_data: Callable[[Source, DataSpec], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., EngineSetup]:
    """`setup_of(family)`: sums to learn, of various lengths."""
    data = tmp_path_factory.mktemp("sums") / "sums.jsonl"
    rows = [
        {"prompt": "Count" + " on" * (n % 7) + f" from {n}:", "completion": f" {n + 1}" + f", {n + 2}" * (n % 3)}
        for n in range(90)
    ]
    data.write_text("\n".join(map(json.dumps, rows)))

    def build(family: str) -> EngineSetup:
        source = resolve(ModelSpec(name=str(tiny_model(family))))
        kept = kept_data(source, DataSpec(name=str(data), max_length=64))
        return EngineSetup(source=source, data=kept, dtype="float32", device="cpu", threads=1)

    return build


@pytest.fixture(scope="session")
def load(setup_of: Callable[..., EngineSetup]) -> Callable[[str], Engine]:
    """`load(family)` is a fresh engine on every call."""
    return lambda family: Engine.load(setup_of(family))


@pytest.fixture(scope="module")
def engine(load: Callable[[str], Engine]) -> Engine:
    """One qwen2 engine for every test of a file: none may depend on what the others did with it."""
    return load("qwen2")
