"""Fits: power laws through measured points."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bandsearch.values.value import Value


class PowerLaw(Value):
    """y = factor * x ** exponent, by least squares on logarithms. `worst` is the largest |y / fit - 1|."""

    factor: float
    exponent: float
    worst: float


def power_law(xs: Sequence[float], ys: Sequence[float]) -> PowerLaw:
    """At least two different x; all positive."""
    exponent, offset = np.polyfit(np.log(xs), np.log(ys), 1)
    fitted = np.exp(offset) * np.asarray(xs, dtype=float) ** exponent
    worst = float(np.max(np.abs(np.asarray(ys) / fitted - 1)))
    return PowerLaw(factor=float(np.exp(offset)), exponent=float(exponent), worst=worst)
