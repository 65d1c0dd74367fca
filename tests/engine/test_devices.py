"""What of a machine may be used, and how engines are laid over it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bandsearch.engine.devices import DeviceInventory, devices, engine_layout
from bandsearch.engine.machine import usable_cores, usable_memory

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


CORES, MEMORY = usable_cores(Path("none"), Path("none")), usable_memory(Path("none"), Path("none"))


@pytest.mark.parametrize(
    ("membership", "files", "cores", "memory"),
    [
        # Version 2, in a container and in a slice of a host.
        ("0::/\n", {"cpu.max": "250000 100000", "memory.max": "300000000"}, 2, 300_000_000),
        ("0::/a/b\n", {"a/cpu.max": "100000 100000", "a/b/cpu.max": "max 100000", "a/memory.max": "4096"}, 1, 4096),
        ("0::/\n", {"cpu.max": "50000 100000", "memory.max": "max\n"}, 1, MEMORY),
        # Version 1, whose path is the host's.
        (
            "4:memory:/docker/1\n1:cpu,cpuacct:/docker/1\n",
            {
                "cpu,cpuacct/cpu.cfs_quota_us": "300000",
                "cpu,cpuacct/cpu.cfs_period_us": "100000",
                "memory/memory.limit_in_bytes": "5000",
            },
            3,
            5000,
        ),
        (
            "4:memory:/\n1:cpu:/\n",
            {
                "cpu/cpu.cfs_quota_us": "-1",
                "cpu/cpu.cfs_period_us": "100000",
                "memory/memory.limit_in_bytes": "9223372036854771712",
            },
            64,
            MEMORY,
        ),
        ("nonsense", {}, 64, MEMORY),
    ],
)
def test_a_containers_limits_are_the_machine(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    membership: str,
    files: dict[str, str],
    cores: int,
    memory: int,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    (tmp_path / "membership").write_text(membership)
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert usable_cores(tmp_path, tmp_path / "membership") == cores
    assert usable_memory(tmp_path, tmp_path / "membership") == memory


def test_without_control_groups_it_is_the_whole_machine() -> None:
    assert len(os.sched_getaffinity(0)) == CORES
    assert os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") == MEMORY


def test_gpus_that_torch_cannot_use_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_old(_: int) -> object:
        raise RuntimeError("The NVIDIA driver on your system is too old")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", too_old)
    assert devices().gpus == ()
