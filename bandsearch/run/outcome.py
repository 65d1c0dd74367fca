"""What a run came to, read back from its files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bandsearch.run.finished import Finished
from bandsearch.rundir import Records, RunDirectory
from bandsearch.values.evaluation import Evaluation, Winner
from bandsearch.values.ledger import read_ledger
from bandsearch.values.plan import Plan
from bandsearch.values.profile import SensitivityProfile
from bandsearch.values.trial import TrialState
from bandsearch.values.value import Value


@dataclass(frozen=True)
class RunOutcome:
    """A complete run. `spent_seconds` are device-seconds, as in the ledger. Where vLLM serves no such adapters there is
    no `serve_command`, and `not_served` says so."""

    directory: Path
    winner: Winner
    evaluation: Evaluation
    verdict: str
    spent_seconds: float
    adapter: Path
    serve_command: str | None
    not_served: str = ""


class RunStatus(Value):
    """Where a run stands. Seconds are device-seconds."""

    directory: str
    model: str
    data: str
    stages_done: tuple[str, ...]
    next_stage: str | None
    spent_by_stage: dict[str, float]
    limit: float | None
    trials: dict[str, int]
    best_loss: float | None
    next_command: str | None


def outcome_of(home: RunDirectory) -> RunOutcome:
    done = Finished.read(home)
    return RunOutcome(
        directory=home.path,
        winner=done.winner,
        evaluation=done.evaluation,
        verdict=done.verdict,
        spent_seconds=sum(read_ledger(home.ledger).values()),
        adapter=home.adapter,
        serve_command=done.serve_command,
        not_served=done.not_served,
    )


def status(directory: Path) -> RunStatus:
    """Read-only: works beside a run that is under way."""
    home = RunDirectory.open(directory)
    spec = home.read_spec()
    markers = {
        "plan": home.read(home.plan, Plan),
        "probe": home.read(home.profile, SensitivityProfile),
        "search and confirm": home.read(home.winner, Winner),
        "train and export": home.adapter if home.adapter.exists() else None,
        "evaluate": home.read(home.evaluation, Evaluation),
    }
    undone = [stage for stage, found in markers.items() if found is None]
    results = Records(home.trials).results()
    losses = [r.last_loss for r in results if r.last_loss is not None and r.state is not TrialState.DIVERGED]
    return RunStatus(
        directory=str(directory),
        model=spec.model.name,
        data=" + ".join(spec.data.names),
        stages_done=tuple(stage for stage, found in markers.items() if found is not None),
        next_stage=undone[0] if undone else None,
        spent_by_stage=read_ledger(home.ledger) if home.ledger.exists() else {},
        limit=spec.budget.seconds if spec.budget else None,
        trials={state: count for state in TrialState if (count := sum(result.state is state for result in results))},
        best_loss=min(losses, default=None),
        next_command=f"bandsearch resume {directory}" if undone else None,
    )
