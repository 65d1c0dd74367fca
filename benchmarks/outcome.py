"""The outcome of a study: everything measured, and the one line a program reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
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
        """Ratios of A and B, equality, how many candidates A trains, and which arms something else ran beside."""
        main = self.workloads[0].equal
        screened = next((each for each in self.workloads if each.screening), None)
        screening = screened.screening if screened else None
        beside = main.naive_side_by_side
        return {
            "a_naive": main.naive.median,
            "a_naive_side_by_side": beside.median if beside else None,
            "a_strong": main.strong.median,
            "b_naive": screening.naive.median if screening else None,
            "b_workload": screened.scale.name if screened else None,
            "b_winner_no_worse": screening.is_no_worse if screening else None,
            "max_loss_deviation": main.max_loss_deviation,
            "deviation_is_rounding": _all_rounding([each.equal for each in self.workloads]),
            "trials": main.trials,
            "disturbed": [f"{each.scale.name}: {arm}" for each in self.workloads for arm in each.equal.disturbed],
        }

    def line(self) -> str:
        rounded = {
            name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in self.headline.items()
        }
        return json.dumps(rounded | {"study": self.study, "seconds": round(self.seconds)})

    def document(self) -> str:
        """All of it as JSON, the headline first."""
        return json.dumps(self.headline | self.model_dump(mode="json"), indent=1) + "\n"


def _all_rounding(found: Sequence[EqualMath]) -> bool | None:
    """None where no workload was trained in float64 too."""
    looked_at = [each.rounding.is_all for each in found if each.rounding is not None]
    return all(looked_at) if looked_at else None
