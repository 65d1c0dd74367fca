"""What the report is made of: plain values, so that it can be rebuilt from a run's files."""

from __future__ import annotations

from dataclasses import dataclass

from bandsearch.values.atlas import Suggestion
from bandsearch.values.evaluation import Evaluation, Winner
from bandsearch.values.plan import Plan
from bandsearch.values.profile import SensitivityProfile
from bandsearch.values.spec import RunSpec
from bandsearch.values.trial import TrialResult


@dataclass(frozen=True)
class ReportFacts:
    """Everything the report says. `trials` holds the stages search and confirm; seconds are device-seconds.

    `not_served` says so where vLLM serves no such adapters. `prior` is what earlier runs recommended, empty where they
    were not asked. `merging` is the command that merges the adapter, `python` what loads it, and `recipe` what trains
    it with other tools; the last two are empty for runs that do not say what their adapter comes from.
    `adapter` is the path of the adapter relative to the report.
    """

    spec: RunSpec
    environment: dict[str, str]
    profile: SensitivityProfile
    trials: tuple[TrialResult, ...]
    plan: Plan
    winner: Winner
    evaluation: Evaluation
    verdict: str
    ledger_by_stage: dict[str, float]
    devices: int
    serve_command: str
    not_served: str = ""
    merging: str = ""
    python: str = ""
    recipe: str = ""
    adapter: str = "adapter"
    prior: tuple[Suggestion, ...] = ()
    data_notes: tuple[str, ...] = ()
