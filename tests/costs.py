"""What work costs where only some of it matters."""

from __future__ import annotations

from typing import Any

from bandsearch.values.plan import Costs


def costs_of(step: float, **others: Any) -> Costs:
    """`step` seconds a step, alone and packed; nothing else costs anything but what `others` name."""
    free = {
        "packing": 1,
        "seconds_per_packed_step": step,
        "seconds_per_validation": 0,
        "seconds_per_test_loss": 0,
        "seconds_per_generation": 0,
        "load_seconds": 0,
        "peak_memory_bytes": 0,
    }
    return Costs(seconds_per_step=step, **(free | others))
