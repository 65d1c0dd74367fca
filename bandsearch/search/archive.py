"""The archive: `study.db`, an Optuna study in SQLite that any Optuna tool can open.

It keeps what was proposed and not yet finished; finished trainings are the records' (`trials.jsonl`), and where the two
differ the records are right: the archive is brought up to them when it is opened.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, create_trial
from optuna.trial import TrialState as OptunaState
from sqlalchemy.exc import SQLAlchemyError

from bandsearch.search.candidates import CandidateCode
from bandsearch.search.proposal import Proposal
from bandsearch.values.errors import RunDirectoryError
from bandsearch.values.spec import Objective
from bandsearch.values.trial import TrialResult, TrialState

STUDY_NAME = "bandsearch"
_PROPOSAL = "proposal"
_NUMBER = "number"
_ROLE = "role"
_CURVE = "loss_by_steps"
_REASON = "reason"

# A diverged or out-of-memory training has no value to learn a ranking from; Optuna's FAIL says just that.
_STATES: Mapping[TrialState, OptunaState] = {
    TrialState.COMPLETE: OptunaState.COMPLETE,
    TrialState.PRUNED: OptunaState.PRUNED,
    TrialState.DIVERGED: OptunaState.FAIL,
    TrialState.OUT_OF_MEMORY: OptunaState.FAIL,
}


class Archive:
    """Ask and tell on the study, one transaction each. Losses are stored as measured, one value or two.

    Raises OSError where the disk is full, and RunDirectoryError where the file is damaged.
    """

    def __init__(self, path: Path, code: CandidateCode, objective: Objective) -> None:
        self._path, self._code, self._objective = path, code, objective
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with self._readable():
            self._study = optuna.create_study(
                storage=RDBStorage(f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": 60}}),
                study_name=STUDY_NAME,
                directions=["minimize"] if objective is not Objective.PARETO else ["minimize", "minimize"],
                load_if_exists=True,
            )

    def unfinished(self, results: Iterable[TrialResult]) -> list[Proposal]:
        """Bring the study up to the records, and return what a dead process left under way, by number.

        A finished training that the study does not know is told now. What is still RUNNING stays so, to be trained
        again from its beginning and told under the same trial, so that no candidate is in the study twice.
        """
        with self._readable():
            trials = self._study.get_trials(deepcopy=False)
            states = {trial.user_attrs[_NUMBER]: trial.state for trial in trials}
            for result in results:
                if result.number not in states:
                    self.begin(Proposal.of(result))
                    self.end(result)
                elif states.pop(result.number) is OptunaState.RUNNING:
                    self.end(result)
            running = [
                Proposal.model_validate_json(trial.user_attrs[_PROPOSAL])
                for trial in trials
                if states.get(trial.user_attrs[_NUMBER]) is OptunaState.RUNNING
            ]
            return sorted(running, key=lambda proposal: proposal.number)

    def abandon_unfinished(self) -> None:
        """Mark what is still RUNNING as FAIL, once the search is over for good."""
        with self._readable():
            for trial in self._study.get_trials(deepcopy=False, states=(OptunaState.RUNNING,)):
                self._study.tell(trial.number, state=OptunaState.FAIL)

    def begin(self, proposal: Proposal) -> None:
        """Enter a proposal as RUNNING."""
        params = self._code.encode(proposal.candidate) or {}
        with self._readable():
            self._study.add_trial(
                create_trial(
                    state=OptunaState.RUNNING,
                    params=params,
                    distributions={name: self._code.distributions[name] for name in params},
                    user_attrs={
                        _NUMBER: proposal.number,
                        _ROLE: proposal.role.value,
                        _PROPOSAL: proposal.model_dump_json(),
                    },
                )
            )

    def end(self, result: TrialResult) -> None:
        """Tell the study how the running trial of this number ended."""
        with self._readable():
            trial = self._running_trial(result.number)
            open_trial = optuna.Trial(self._study, trial._trial_id)
            if result.reason:
                open_trial.set_user_attr(_REASON, result.reason)
            state = _STATES[result.state]
            values: list[float] | None = None
            if self._objective is not Objective.PARETO:
                for point in result.points:
                    open_trial.report(point.loss, point.steps)
                if state is OptunaState.COMPLETE:
                    values = [result.points[-1].loss]
            else:
                # Optuna takes no intermediate values of two objectives.
                open_trial.set_user_attr(_CURVE, {str(point.steps): point.loss for point in result.points})
                if state is OptunaState.COMPLETE:
                    values = [result.points[-1].loss, float(result.trainable_parameters)]
            self._study.tell(trial.number, values, state=state)

    def _running_trial(self, number: int) -> FrozenTrial:
        running = self._study.get_trials(deepcopy=False, states=(OptunaState.RUNNING,))
        return next(trial for trial in running if trial.user_attrs.get(_NUMBER) == number)

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (StorageInternalError, SQLAlchemyError) as error:
            innermost = _innermost(error)
            if getattr(innermost, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path)) from error
            raise RunDirectoryError(
                f"{self._path} cannot be used: {str(innermost).splitlines()[0]}.",
                "See that its disk has room. If the file is damaged delete it; it is made again from trials.jsonl.",
            ) from error


def _innermost(error: BaseException) -> BaseException:
    while (cause := error.__cause__) is not None:
        error = cause
    return error
