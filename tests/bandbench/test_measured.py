"""Signals that are measured beside a table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from planted import header

from bandsearch.engine.engine import Engine
from bandsearch.engine.setup import EngineSetup
from bandsearch.models.aliases import Source, resolve
from bandsearch.values.band import Band
from bandsearch.values.candidate import Candidate
from bandsearch.values.fidelity import Fidelity, Schedule
from bandsearch.values.spec import DataSpec, ModelSpec
from benchmarks.bandbench import measured as measuring
from benchmarks.bandbench.design import Design
from benchmarks.bandbench.measured import Measured, load_measured, measure
from benchmarks.bandbench.rows import Rows

DESIGN = Design(rungs=(2,), full_steps=3, batch_size=4, validation_examples=8)
HABIT = (2, "mlp")
LAYERS = 4


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[[str], Path]) -> Measured:
    folder = tmp_path_factory.mktemp("signals")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "WARM_STEPS", 1)
        patch.setattr(measuring, "MODEL", str(tiny_model("qwen2")))
        Rows(folder / "swap.jsonl").begin(header("swap", design=DESIGN))
        measure(folder, "swap", HABIT)
    made = load_measured(folder, "swap")
    assert made is not None
    path = folder / "swap.signals.json"
    before = path.stat().st_mtime_ns
    measure(folder, "swap", HABIT)
    assert path.stat().st_mtime_ns == before
    return made


def test_every_layer_and_every_band_has_a_number(found: Measured) -> None:
    assert {len(values) for values in found.layers.values()} == {LAYERS}
    assert all(max(values) > min(values) for values in found.layers.values())
    assert {len(bands) for bands in found.bands.values()} == {LAYERS * (LAYERS + 1) // 2}
    assert found.seconds.keys() == found.layers.keys() | found.bands.keys()


def test_the_masked_run_with_all_layers_is_a_full_depth_training(
    found: Measured, tiny_model: Callable[[str], Path], kept_data: Callable[[Source, DataSpec], str]
) -> None:
    source = resolve(ModelSpec(name=str(tiny_model("qwen2"))))
    setup = EngineSetup(
        source=source,
        data=kept_data(source, DataSpec(name="demo:swap")),
        dtype="float32",
        device="cpu",
        threads=1,
    )
    engine = Engine.load(setup)
    candidate = Candidate(
        bands=(Band.full(LAYERS),),
        rank=2,
        alpha=DESIGN.alpha,
        targets=("mlp",),
        learning_rate=header(design=DESIGN).rates[0],
    )
    fidelity = Fidelity(steps=3, batch_size=4, seed=0, schedule=Schedule.LINEAR, warmup_steps=0, validation_examples=8)
    loss = engine.advance(engine.admit(candidate, fidelity), 3).loss
    scores = {(start, stop): score for start, stop, score in found.bands["masked run, 3 steps"]}
    assert -scores[0, LAYERS] == pytest.approx(loss, abs=1e-5)
    # Narrower parts of an adapter that was trained whole hold less of it.
    assert scores[0, LAYERS] > scores[2, 3]


def test_a_supernet_trains_parts_and_a_warm_start_goes_on_from_it(found: Measured) -> None:
    masked, net, warm = (
        {(start, stop): score for start, stop, score in found.bands[name]}
        for name in ("masked run, 3 steps", "supernet, 3 steps", "warm start, 1 after 3 steps")
    )
    assert net != masked
    assert sum(warm.values()) > sum(net.values())
