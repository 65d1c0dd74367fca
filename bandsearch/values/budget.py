"""A budget: how much of a machine may be held, for how long."""

from __future__ import annotations

import re
from enum import StrEnum

from pydantic import Field

from bandsearch.values.errors import BudgetError
from bandsearch.values.value import Value


class Unit(StrEnum):
    """What is multiplied with wall time. A wall-clock budget charges the run as one unit."""

    GPU = "gpu"
    CPU = "cpu"
    WALL = "wall"


_SECONDS = {"h": 3600.0, "min": 60.0, "s": 1.0}
# Nobody has more, and far beyond it planning counts more candidates than a machine integer holds.
_MOST_SECONDS = 1e6 * 3600
_PATTERN = re.compile(r"(?P<amount>\d+(?:\.\d+)?)\s*(?:(?P<unit>gpu|cpu)-)?(?P<time>h|min|s)", re.IGNORECASE)
_FORMS = "Write it as 8gpu-h, 30gpu-min (accelerators x time), 2cpu-h (cores x time) or 45min, 2h (wall clock)."


class Budget(Value):
    """`seconds` of `unit`: device-seconds for gpu and cpu, plain seconds for wall clock."""

    seconds: float = Field(gt=0)
    unit: Unit

    @classmethod
    def parse(cls, text: str) -> Budget:
        match = _PATTERN.fullmatch(text.strip())
        if match is None:
            raise BudgetError(f"Budget {text!r} is not understood.", _FORMS)
        seconds = float(match["amount"]) * _SECONDS[match["time"].lower()]
        if seconds <= 0:
            raise BudgetError(f"Budget {text!r} is zero.", _FORMS)
        if seconds > _MOST_SECONDS:
            raise BudgetError(f"Budget {text!r} is more than a million hours.", _FORMS)
        return cls(seconds=seconds, unit=Unit(match["unit"].lower()) if match["unit"] else Unit.WALL)

    def devices(self, gpus: int, cores: int) -> int:
        """How many devices a run on this machine holds and is charged for. All visible ones are used."""
        if self.unit is Unit.WALL:
            return 1
        if self.unit is Unit.CPU:
            if gpus:
                raise BudgetError(
                    f"A budget in cpu-hours was given, but {gpus} GPU(s) are visible and would be used.",
                    "Give it in gpu-h or as wall clock, or hide the GPUs with CUDA_VISIBLE_DEVICES=''.",
                )
            return cores
        if not gpus:
            hours = self.seconds / 3600
            raise BudgetError(
                "A budget in gpu-hours was given, but no GPU is visible on this machine.",
                f"Give it in cores x time (for example {hours * cores:g}cpu-h) or as wall clock ({hours:g}h). "
                "If there is one, `bandsearch doctor` says why torch does not see it.",
            )
        return gpus

    def wall_seconds(self, gpus: int, cores: int) -> float:
        """Wall-clock seconds this budget lasts on this machine."""
        return self.seconds / self.devices(gpus, cores)

    def __str__(self) -> str:
        unit = "" if self.unit is Unit.WALL else f"{self.unit}-"
        for name, size in _SECONDS.items():
            amount = float(f"{self.seconds / size:.4g}")
            if amount * size == self.seconds and self.seconds >= size:
                return f"{amount:.10g}{unit}{name}"
        return f"{self.seconds:.10g}{unit}s"
