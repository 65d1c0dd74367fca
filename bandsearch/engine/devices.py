"""The machine: which accelerators and cores a run may hold, and how engines are laid over them."""

from __future__ import annotations

import torch
from pydantic import Field

from bandsearch.engine.machine import usable_cores, usable_memory
from bandsearch.values.value import Value

# Engines side by side use cores better than threads of one, but the final trainings have only two to share.
MOST_CPU_ENGINES = 4
# What an engine holds in fp32 per parameter, with activations and a second copy while it loads, and beside the model.
BYTES_PER_PARAMETER, BYTES_PER_ENGINE = 8, 1_500_000_000
MEMORY_SHARE = 0.6


class DeviceInventory(Value):
    gpus: tuple[str, ...]
    cores: int
    memory_bytes: int
    gpu_memory_bytes: int = Field(default=0, ge=0, description="of the smallest GPU")


class Placement(Value):
    device: str
    threads: int


def devices() -> DeviceInventory:
    # The driver counts them also for a build of torch that cannot use them, and whose first call would fail.
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpus = [torch.cuda.get_device_properties(index) for index in range(count)]
    return DeviceInventory(
        gpus=tuple(gpu.name for gpu in gpus),
        cores=usable_cores(),
        memory_bytes=usable_memory(),
        gpu_memory_bytes=min((gpu.total_memory for gpu in gpus), default=0),
    )


def engine_layout(inventory: DeviceInventory, parameters: int) -> tuple[Placement, ...]:
    """One engine per GPU; without one, as many engines of equal threads as cores and memory have room for."""
    if inventory.gpus:
        share = max(1, inventory.cores // len(inventory.gpus))
        return tuple(Placement(device=f"cuda:{index}", threads=share) for index in range(len(inventory.gpus)))
    size = BYTES_PER_PARAMETER * parameters + BYTES_PER_ENGINE
    fitting = int(MEMORY_SHARE * inventory.memory_bytes / size)
    engines = max(1, min(MOST_CPU_ENGINES, inventory.cores, fitting))
    return tuple(Placement(device="cpu", threads=inventory.cores // engines) for _ in range(engines))
