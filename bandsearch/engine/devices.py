"""The machine: which accelerators and cores a run may hold, and how engines are laid over them."""

from __future__ import annotations

import os

import torch

from bandsearch.values.value import Value

# Below this many parameters a decoder's matrix products are too small to gain from a second thread.
ONE_THREAD_PARAMETERS = 50_000_000


class DeviceInventory(Value):
    gpus: tuple[str, ...]
    cores: int
    memory_bytes: int


class Placement(Value):
    device: str
    threads: int


def devices() -> DeviceInventory:
    gpus = tuple(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return DeviceInventory(gpus=gpus, cores=len(os.sched_getaffinity(0)), memory_bytes=memory)


def engine_layout(inventory: DeviceInventory, parameters: int) -> tuple[Placement, ...]:
    """One engine per GPU; without one, an engine per core for small models and one on all cores for others."""
    if inventory.gpus:
        share = max(1, inventory.cores // len(inventory.gpus))
        return tuple(Placement(device=f"cuda:{index}", threads=share) for index in range(len(inventory.gpus)))
    if parameters < ONE_THREAD_PARAMETERS:
        return tuple(Placement(device="cpu", threads=1) for _ in range(inventory.cores))
    return (Placement(device="cpu", threads=inventory.cores),)
