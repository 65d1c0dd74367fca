"""How engines are laid over a machine."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bandsearch.engine.devices import DeviceInventory, engine_layout

GB = 10**9


@given(cores=st.integers(1, 256), memory=st.integers(1, 2000), parameters=st.integers(10**6, 10**11))
def test_cpu_engines_never_hold_more_cores_than_there_are(cores: int, memory: int, parameters: int) -> None:
    layout = engine_layout(DeviceInventory(gpus=(), cores=cores, memory_bytes=memory * GB), parameters)
    assert len(layout) >= 1
    assert all(place.threads >= 1 and place.device == "cpu" for place in layout)
    assert sum(place.threads for place in layout) <= cores


def test_a_small_model_gets_an_engine_per_core_and_one_that_fills_the_memory_gets_one() -> None:
    machine = DeviceInventory(gpus=(), cores=2, memory_bytes=24 * GB)
    assert [place.threads for place in engine_layout(machine, 2_400_000)] == [1, 1]
    assert [place.threads for place in engine_layout(machine, 1_500_000_000)] == [2]


def test_every_gpu_gets_one() -> None:
    machine = DeviceInventory(gpus=("a", "b"), cores=16, memory_bytes=128 * GB)
    assert [(place.device, place.threads) for place in engine_layout(machine, 7 * 10**9)] == [
        ("cuda:0", 8),
        ("cuda:1", 8),
    ]
