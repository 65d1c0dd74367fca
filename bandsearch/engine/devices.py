"""The machine: which accelerators and cores a run may hold, and how engines are laid over them."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field

from bandsearch.engine.machine import usable_cores, usable_memory
from bandsearch.values.value import Value

# Engines side by side use cores better than threads of one, but the final trainings have only two to share.
MOST_CPU_ENGINES = 4
# What an engine holds in fp32 per parameter, with activations and a second copy while it loads, and beside the model.
BYTES_PER_PARAMETER, BYTES_PER_ENGINE = 8, 1_500_000_000
MEMORY_SHARE = 0.6
# Seconds that the driver may take to say what is free.
ASKING = 20
# The driver keeps a little of a GPU's memory for itself.
WHOLE = 0.9


class DeviceInventory(Value):
    gpus: tuple[str, ...]
    cores: int
    memory_bytes: int
    gpu_memory_bytes: int = Field(default=0, ge=0, description="of the GPU that has least of it free")
    gpu_free_bytes: int = Field(default=0, ge=0, description="of these, what nobody else has")


class Placement(Value):
    device: str
    threads: int


def devices() -> DeviceInventory:
    # The driver counts them also for a build of torch that cannot use them, and whose first call would fail.
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpus = [torch.cuda.get_device_properties(index) for index in range(count)]
    taken = _taken_bytes() if gpus else {}
    rooms = [(max(0, gpu.total_memory - _taken(gpu, taken)), gpu.total_memory) for gpu in gpus]
    free, total = min(rooms, default=(0, 0))
    return DeviceInventory(
        gpus=tuple(gpu.name for gpu in gpus),
        cores=usable_cores(),
        memory_bytes=usable_memory(),
        gpu_memory_bytes=total,
        gpu_free_bytes=free,
    )


def _taken_bytes() -> dict[str, tuple[int, int]]:
    """What is taken of every GPU's memory and all of it, by its UUID, as the driver's own program says; nothing where
    it does not.

    torch knows too, but only with a context on every GPU, which would itself take half a gigabyte there as long as this
    process lives, and keep engines off a GPU that is for one process alone.
    """
    asked = ["nvidia-smi", "--query-gpu=uuid,memory.used,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=ASKING, check=True).stdout
        rows = [line.split(", ") for line in answer.splitlines()]
        return {uuid.removeprefix("GPU-"): (int(used) * 2**20, int(total) * 2**20) for uuid, used, total in rows}
    except (OSError, subprocess.SubprocessError, ValueError):
        return {}


def _taken(gpu: Any, known: Mapping[str, tuple[int, int]]) -> int:
    """Of this GPU. A slice of one (MIG) may go by the name of the whole, of which others have their own slices."""
    used, total = known.get(str(getattr(gpu, "uuid", "")), (0, 0))
    return used if gpu.total_memory >= WHOLE * total else 0


def engine_layout(inventory: DeviceInventory, parameters: int) -> tuple[Placement, ...]:
    """One engine per GPU; without one, as many engines of equal threads as cores and memory have room for."""
    if inventory.gpus:
        share = max(1, inventory.cores // len(inventory.gpus))
        return tuple(Placement(device=f"cuda:{index}", threads=share) for index in range(len(inventory.gpus)))
    size = BYTES_PER_PARAMETER * parameters + BYTES_PER_ENGINE
    fitting = int(MEMORY_SHARE * inventory.memory_bytes / size)
    engines = max(1, min(MOST_CPU_ENGINES, inventory.cores, fitting))
    return tuple(Placement(device="cpu", threads=inventory.cores // engines) for _ in range(engines))
