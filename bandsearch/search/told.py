"""What a sampler is told: trials of a study that is made for one question, and asked it several times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState


class Told(FrozenTrial):  # type: ignore[misc]
    """A trial of one study only. A storage copies what it is given, which took a third of a proposal's time."""

    # Nothing that is told was out of bounds; Optuna looks it up for every trial at every question.
    constraints: Mapping[str, float] = {}

    def __init__(
        self,
        state: OptunaState,
        params: dict[str, Any],
        distributions: Mapping[str, BaseDistribution],
        values: list[float] | None = None,
        readings: dict[int, float] | None = None,
    ) -> None:
        now = datetime.now()
        super().__init__(
            number=-1,
            trial_id=-1,
            state=state,
            value=None,
            values=values,
            datetime_start=now,
            datetime_complete=now if state.is_finished() else None,
            params=params,
            distributions=distributions,
            user_attrs={},
            system_attrs={},
            intermediate_values=readings or {},
        )
        self.place = {name: each.to_internal_repr(params[name]) for name, each in distributions.items()}

    def __deepcopy__(self, memo: dict[int, Any]) -> Told:
        return self

    def _validate(self) -> None:
        """Whoever tells has its parameters from what encodes candidates, which is strict."""


class ToldSampler(TPESampler):  # type: ignore[misc]
    """TPE (multivariate) that takes what it was told as it is, and not trial by trial and parameter by parameter at
    every question. It proposes what Optuna's own does."""

    def __init__(self, seed: int, distributions: Mapping[str, BaseDistribution]) -> None:
        super().__init__(seed=seed, n_startup_trials=1, multivariate=True)
        self._joint = {name: each for name, each in sorted(distributions.items()) if not each.single()}

    def infer_relative_search_space(self, study: Any, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All that was told has the same parameters."""
        return dict(self._joint)

    def _get_internal_repr(
        self, trials: Sequence[FrozenTrial], search_space: Mapping[str, BaseDistribution], *study: Any
    ) -> dict[str, NDArray[np.float64]]:
        # By number, so that what was asked since stands behind what was told.
        told = [trial.place for trial in trials if isinstance(trial, Told)]
        asked = super()._get_internal_repr(trials[len(told) :], search_space, *study)
        return {name: np.array([*(place[name] for place in told), *asked[name]], dtype=float) for name in search_space}
