"""A finished run: what its stages left, read back."""

from __future__ import annotations

from dataclasses import dataclass

from bandsearch.adapters.limits import chat_template_of, not_served, serve_command
from bandsearch.run.verdict import verdict
from bandsearch.rundir import RunDirectory
from bandsearch.values.environment import Environment
from bandsearch.values.errors import RunDirectoryError
from bandsearch.values.evaluation import Evaluation, Winner
from bandsearch.values.plan import Plan
from bandsearch.values.profile import SensitivityProfile


@dataclass(frozen=True)
class Finished:
    """`serve_command` is None where vLLM serves no such adapters; `not_served` says so then."""

    home: RunDirectory
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
        return cls(home, plan, profile, winner, evaluation, environment)

    @property
    def verdict(self) -> str:
        return verdict(self.winner, self.evaluation)

    @property
    def not_served(self) -> str:
        lineage = self.environment.lineage
        return not_served(lineage.layout if lineage else None, self.home.path)

    @property
    def serve_command(self) -> str | None:
        if self.not_served:
            return None
        adapter, rank = self.home.adapter, self.winner.candidate.rank
        return serve_command(self.environment.source, adapter, rank, chat_template_of(adapter))
