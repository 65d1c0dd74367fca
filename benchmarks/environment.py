"""The environment: what the figures were measured on."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from bandsearch.engine.devices import devices
from bandsearch.values.value import Value

PACKAGES = ("bandsearch", "torch", "transformers", "peft", "ray", "accelerate", "optuna")


class Environment(Value):
    date: str
    processor: str
    cores: int
    memory_bytes: int
    gpus: tuple[str, ...]
    python: str
    packages: dict[str, str]
    load_before: float


def environment() -> Environment:
    """`load_before`: the machine's load average when the benchmark starts; well below 1 on a machine left alone."""
    inventory = devices()
    return Environment(
        date=datetime.now(UTC).date().isoformat(),
        processor=f"{_processor()} ({torch.backends.cpu.get_cpu_capability()})",
        cores=inventory.cores,
        memory_bytes=inventory.memory_bytes,
        gpus=inventory.gpus,
        python=platform.python_version(),
        packages={name: version(name) for name in PACKAGES},
        load_before=os.getloadavg()[0],
    )


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
