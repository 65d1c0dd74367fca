"""Scaling: how trials per hour change with depth, width, K and data size, with fitted exponents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from bandsearch.data.splits import SHARE
from bandsearch.values.levers import Levers
from bandsearch.values.value import Value
from benchmarks.candidates import alike
from benchmarks.fits import PowerLaw, power_law
from benchmarks.ours import run_ours
from benchmarks.scale import Study
from benchmarks.workload import Workload, make_workload

TRAIN_SHARE = 1 - 2 * SHARE


class Curve(Value):
    """Trials per hour on warm engines at each value of `axis`; all else is as in the ablated workload."""

    axis: str
    values: tuple[float, ...]
    trials_per_hour: tuple[float, ...]
    fit: PowerLaw


def measure_scaling(workload: Workload, study: Study, folder: Path) -> tuple[Curve, ...]:
    """Trials on the upper half of the layers. Depth and width need a model of given sizes."""
    count, scale = study.count, workload.scale

    def curve(axis: str, values: Sequence[int], measure: Callable[[int], float]) -> Curve | None:
        if len(values) < 2:
            return None
        rates = [measure(value) for value in values]
        return Curve(axis=axis, values=tuple(values), trials_per_hour=tuple(rates), fit=power_law(list(values), rates))

    def resized(name: str, value: int) -> float:
        assert scale.shape is not None
        if name == "width":
            shape = scale.shape.model_copy(
                update={"width": value, "inner": scale.shape.inner * value // scale.shape.width}
                | {"heads": max(1, value // 64), "key_heads": max(1, value // 64)}
            )
        else:
            shape = scale.shape.model_copy(update={"layers": value})
        changed = scale.model_copy(update={"shape": shape})
        return _rate(make_workload(changed, folder / f"{name}-{value}", workload.device), count)

    curves = [
        curve("depth", study.depths, lambda value: resized("depth", value)),
        curve("width", study.widths, lambda value: resized("width", value)),
        curve("K", study.packings, lambda value: _rate(workload, count, Levers(packing=value))),
        curve("training examples", study.data_sizes, lambda value: _rate(_epoch_of(workload, value, folder), count)),
    ]
    return tuple(each for each in curves if each is not None)


def _epoch_of(workload: Workload, examples: int, folder: Path) -> Workload:
    """One pass over about so many examples, which are all there are to train on."""
    steps = max(1, examples // workload.scale.batch_size)
    changed = workload.scale.model_copy(update={"rungs": (steps,), "rows": round(examples / TRAIN_SHARE)})
    return make_workload(changed, folder / f"examples-{examples}", workload.device)


def _rate(workload: Workload, count: int, levers: Levers | None = None) -> float:
    depth = workload.layer_count
    timing = run_ours(workload, alike(depth // 2, depth, count, workload.scale.rates), levers)
    return 3600 * count / timing.warm_seconds
