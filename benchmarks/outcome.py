"""The outcome of a study: everything measured, and the one line a program reads."""

from __future__ import annotations

import json
from typing import Any

from bandsearch.values.value import Value
from benchmarks.ablations import Ablations
from benchmarks.environment import Environment
from benchmarks.equal import EqualMath
from benchmarks.scale import Scale
from benchmarks.scaling import Curve
from benchmarks.screening import Screening


class Measured(Value):
    """One workload."""

    scale: Scale
    device: str
    parameters: int
    layers: int
    equal: EqualMath
    screening: Screening | None


class Outcome(Value):
    """`workloads[0]` is the main one, whose figures of A are the headline; that of B is the first there is."""

    study: str
    seconds: float
    environment: Environment
    workloads: tuple[Measured, ...]
    ablations: Ablations | None
    scaling: tuple[Curve, ...]

    @property
    def headline(self) -> dict[str, Any]:
        """Ratios of A and B, equality, and how many candidates A trains."""
        main = self.workloads[0]
        screening = next((each.screening for each in self.workloads if each.screening), None)
        return {
            "a_naive": main.equal.a_naive,
            "a_strong": main.equal.a_strong,
            "b_naive": screening.b_naive if screening else None,
            "max_loss_deviation": main.equal.max_loss_deviation,
            "trials": main.equal.trials,
        }

    def line(self) -> str:
        rounded = {
            name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in self.headline.items()
        }
        return json.dumps(rounded | {"study": self.study, "seconds": round(self.seconds)})

    def document(self) -> str:
        """All of it as JSON, the headline first."""
        return json.dumps(self.headline | self.model_dump(mode="json"), indent=1) + "\n"
