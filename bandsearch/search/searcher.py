"""The adapters between Ray Tune's callbacks and a campaign. They translate; they decide nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.tune import Stopper
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from bandsearch.search.archive import Archive
from bandsearch.search.campaign import Campaign
from bandsearch.search.clock import Clock
from bandsearch.search.ports import Records
from bandsearch.search.proposal import Proposal
from bandsearch.values.fidelity import Fidelity
from bandsearch.values.trial import Point, TrialResult, TrialState

METRIC = "loss"


class CampaignSearcher(Searcher):  # type: ignore[misc]
    """Hands out proposals while an engine has a place free, and puts away what has finished: records first, then the
    study. `places` names an engine for every candidate that may train at a time.

    Nothing is saved for Ray: a new run over the same records and study continues.
    """

    def __init__(
        self,
        campaign: Campaign,
        archive: Archive,
        records: Records,
        clock: Clock,
        *,
        places: list[int],
        rungs: tuple[int, ...],
        fidelity: Fidelity,
        limit: int | None,
        unfinished: list[Proposal],
        on_change: Callable[[TrialResult | None], None],
    ) -> None:
        super().__init__(metric=METRIC, mode="min")
        self._campaign, self._archive, self._records, self._clock = campaign, archive, records, clock
        self._rungs, self._fidelity, self._limit = rungs, fidelity, limit
        self._unfinished = unfinished
        self._on_change = on_change
        self._free_engines = list(places)
        self.given: dict[str, tuple[int, int]] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        exhausted = not self._unfinished and self._limit is not None and self._campaign.proposed >= self._limit
        if exhausted or not self._clock.fits(self._rungs[0]):
            return str(Searcher.FINISHED)
        if not self._free_engines:
            return None
        if self._unfinished:
            proposal = self._unfinished.pop(0)
            self._campaign.adopt(proposal)
        else:
            found = self._campaign.propose()
            if found is None:
                return str(Searcher.FINISHED)
            proposal = found
            self._archive.begin(proposal)
        engine = self._free_engines.pop(0)
        self.given[trial_id] = (proposal.number, engine)
        self._on_change(None)
        return {
            "number": proposal.number,
            "engine": engine,
            "candidate": proposal.candidate.model_dump_json(),
            "fidelity": self._fidelity.model_copy(update={"seed": proposal.seed}).model_dump_json(),
            "rungs": " ".join(map(str, self._rungs)),
            "deadline": self._clock.training_deadline,
        }

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Readings reach the campaign through the scheduler."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        number, engine = self.given.pop(trial_id)
        self._free_engines.append(engine)
        finished = self._campaign.finish(number)
        if finished is not None:
            self._records.append(finished)
            self._archive.end(finished)
            self._on_change(finished)

    def save(self, checkpoint_path: str) -> None:
        """Ray's folder is scratch."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a search is continued from its records and study, never from Ray's folder")

    def get_state(self) -> dict[str, Any]:
        return {}


class CampaignScheduler(FIFOScheduler):  # type: ignore[misc]
    """Lets the campaign judge every reading; stops a training whose next rung would not end in time."""

    def __init__(self, campaign: Campaign, clock: Clock, searcher: CampaignSearcher, rungs: tuple[int, ...]) -> None:
        super().__init__()
        self._campaign, self._clock, self._searcher, self._rungs = campaign, clock, searcher, rungs

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        number, _ = self._searcher.given[trial.trial_id]
        state = TrialState(result["state"])
        if state is not TrialState.RUNNING:
            self._campaign.stop(number, state, result["reason"])
            return str(TrialScheduler.STOP)
        point = Point(steps=result["steps"], loss=result["loss"], seconds=result["seconds"])
        standing = self._campaign.observe(number, point)
        if standing.goes_on:
            next_rung = next(rung for rung in self._rungs if rung > point.steps)
            if self._clock.fits(next_rung - point.steps):
                return str(TrialScheduler.CONTINUE)
            self._campaign.stop(number, TrialState.PRUNED, f"no time was left to go on to {next_rung} steps")
        return str(TrialScheduler.STOP)


class StopSwitch(Stopper):  # type: ignore[misc]
    """Ends the experiment when the caller says so; Ray asks about ten times a second."""

    def __init__(self, stop: Callable[[], bool]) -> None:
        self._stop = stop

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray writes its stopper into its own folder, and a display or a signal handler does not pickle."""
        return {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._stop()
