"""A finished run: what its stages left, read back."""

from __future__ import annotations

from dataclasses import dataclass

from bandsearch.rundir import RunDirectory
from bandsearch.values.environment import Environment
from bandsearch.values.errors import RunDirectoryError
from bandsearch.values.evaluation import Evaluation, Winner
from bandsearch.values.plan import Plan
from bandsearch.values.profile import SensitivityProfile


@dataclass(frozen=True)
class Finished:
    plan: Plan
    profile: SensitivityProfile
    winner: Winner
    evaluation: Evaluation
    environment: Environment

    @classmethod
    def read(cls, home: RunDirectory) -> Finished:
        """Raises RunDirectoryError for a run that is not complete."""
        plan, profile = home.read(home.plan, Plan), home.read(home.profile, SensitivityProfile)
        winner, evaluation = home.read(home.winner, Winner), home.read(home.evaluation, Evaluation)
        environment = home.read(home.environment, Environment)
        if plan is None or profile is None or winner is None or evaluation is None or environment is None:
            raise RunDirectoryError(
                f"The run in {home.path} is not complete.", f"Go on with `bandsearch resume {home.path}`."
            )
        return cls(plan, profile, winner, evaluation, environment)
