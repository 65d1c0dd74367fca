"""The Ray Trainable: a proxy fine-tune, one rung per step, on an engine that is warm already."""

from __future__ import annotations

import math
import time
from typing import Any

from ray import tune

from bandsearch.engine.failures import DivergedError, OutOfMemoryError
from bandsearch.search.ports import Pool
from bandsearch.values.candidate import Candidate
from bandsearch.values.fidelity import Fidelity
from bandsearch.values.trial import Point, TrialState

# Ray refuses a request of zero.
CPU_SHARE = 0.05


class Proxy(tune.Trainable):  # type: ignore[misc]
    """Admits a candidate to its engine, advances it a rung per `step`, evicts it. Holds no model and no device.

    Every step answers with the same keys; a training that failed says so in `state` (an exception would end the whole
    experiment). The process is reused for the next candidate.
    """

    def setup(self, config: dict[str, Any], pool: Pool) -> None:
        self._pool = pool
        self._session: str | None = None
        self._begin(config)

    def step(self) -> dict[str, Any]:
        try:
            if self._session is None:
                self._session = self._call("admit", self._candidate, self._fidelity)
            left = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
            point: Point = self._call("advance", self._session, self._rungs[self._rung], left)
        except DivergedError as error:
            return _reading(TrialState.DIVERGED, reason=str(error))
        except OutOfMemoryError as error:
            return _reading(TrialState.OUT_OF_MEMORY, reason=str(error))
        self._rung += 1
        if not math.isfinite(point.loss):
            return _reading(TrialState.DIVERGED, reason=f"validation loss is {point.loss} after {point.steps} steps")
        return _reading(TrialState.RUNNING, point)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._evict()
        self._begin(new_config)
        return True

    def cleanup(self) -> None:
        self._evict()

    def _begin(self, config: dict[str, Any]) -> None:
        self._engine: int = config["engine"]
        self._candidate = Candidate.model_validate_json(config["candidate"])
        self._fidelity = Fidelity.model_validate_json(config["fidelity"])
        self._rungs: list[int] = [int(rung) for rung in config["rungs"].split()]
        self._deadline: float | None = config["deadline"]
        self._rung = 0

    def _evict(self) -> None:
        if self._session is not None:
            self._call("evict", self._session)
            self._session = None

    def _call(self, method: str, *args: Any) -> Any:
        return self._pool.get(self._pool.submit(self._engine, method, *args))


def _reading(state: TrialState, point: Point | None = None, reason: str = "") -> dict[str, Any]:
    if point is None:
        point = Point(steps=0, loss=math.inf, seconds=0.0)
    return {
        "state": state.value,
        "steps": point.steps,
        "loss": point.loss,
        "seconds": point.seconds,
        "reason": reason,
    }
