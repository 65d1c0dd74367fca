"""The search: Ray Tune runs a campaign over the engines."""

from __future__ import annotations

import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from ray import tune

from bandsearch.adapters.lora import trainable_parameters
from bandsearch.engine.handles import engine_errors
from bandsearch.search.archive import Archive
from bandsearch.search.campaign import Campaign
from bandsearch.search.candidates import CandidateCode
from bandsearch.search.clock import Clock
from bandsearch.search.ports import Pool, Records
from bandsearch.search.proposer import Sampler
from bandsearch.search.proxy import CPU_SHARE, Proxy
from bandsearch.search.searcher import METRIC, CampaignScheduler, CampaignSearcher, StopSwitch
from bandsearch.values.atlas import Suggestion
from bandsearch.values.candidate import Role
from bandsearch.values.fidelity import Fidelity
from bandsearch.values.layout import Layout
from bandsearch.values.plan import ETA, Plan
from bandsearch.values.profile import SensitivityProfile
from bandsearch.values.progress import Listener, Stop, Update, never, silent
from bandsearch.values.space import SearchSpace
from bandsearch.values.spec import Objective
from bandsearch.values.trial import TrialResult, TrialStage, TrialState

STAGE = TrialStage.SEARCH
# Ray Tune ends its processes after the last training; measured on 2 cores.
TUNE_END_SECONDS = 2.0

_TALKATIVE = ("analysis.experiment_analysis", "execution.tune_controller")

# Tune's own displays, log files, snapshots and Ctrl-C handling are switched off: ours take their place.
_TUNE_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
    "TUNE_WARN_THRESHOLD_S": "1000000",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


def searched(records: Records) -> list[TrialResult]:
    """What a search came to whose confirmation has begun, by number; empty before."""
    known = records.results()
    if not any(result.stage is TrialStage.CONFIRM for result in known):
        return []
    return sorted((result for result in known if result.stage is STAGE), key=lambda result: result.number)


def run_search(
    pool: Pool,
    *,
    space: SearchSpace,
    layout: Layout,
    profile: SensitivityProfile,
    plan: Plan,
    seed: int,
    records: Records,
    study_path: Path,
    scratch: Path,
    wall_left: Callable[[], float],
    objective: Objective = Objective.LOSS,
    sampler: Sampler = Sampler.TPE,
    prior: Sequence[Suggestion] = (),
    listen: Listener = silent,
    stop: Stop = never,
) -> list[TrialResult]:
    """Train proxies of proposed candidates until the plan's number or the time is reached. Returns all, by number.

    Ray is running and `pool` is started. Everything finished is in `records` when it is counted; calling again with the
    same records and study goes on: finished candidates are known, unfinished ones are trained again first, under their
    number. With `plan.trial_limit` one candidate is trained at a time, so that seed and records alone decide what is
    tried, interrupted or not; otherwise `plan.packing` per engine, until `wall_left()` (seconds) leaves no room for a
    first rung, or until the space has nothing new. Ends early, leaving what is under way unfinished, when `stop()` is
    true. `prior` is what earlier runs recommend, the same in every call.

    Raises BandsearchError where the space does not fit the model, the study cannot be written, or an engine is lost.
    """
    code = CandidateCode(space, layout, profile.rate_range)
    past = [result for result in records.results() if result.stage is STAGE]
    archive = Archive(study_path, code, objective)
    unfinished = archive.unfinished(past)
    clock = Clock(lambda: wall_left() - TUNE_END_SECONDS, plan.costs)
    campaign = Campaign(
        code,
        profile,
        rungs=plan.rungs,
        eta=ETA,
        seed=seed,
        expected=plan.trial_limit or plan.expected_trials,
        parameters=partial(trainable_parameters, layout=layout),
        sampler=sampler,
        objective=objective,
        past=past,
        prior=prior,
    )
    if not unfinished and not clock.fits(plan.rungs[0]):
        # Ray Tune takes seconds to begin and to end.
        return campaign.results
    places = [0] if plan.trial_limit is not None else list(range(pool.size)) * plan.packing
    tell = partial(_tell, campaign, plan, clock, listen)
    searcher = CampaignSearcher(
        campaign,
        archive,
        records,
        clock,
        places=places,
        rungs=plan.rungs,
        fidelity=proxy_fidelity(plan, seed),
        limit=plan.trial_limit,
        unfinished=unfinished,
        on_change=tell,
    )
    tell(None)
    _run_tune(pool, len(places), campaign, searcher, clock, plan.rungs, scratch / "ray", stop)
    if campaign.is_exhausted:
        message = "The space has nothing left that differs from what was tried: the search is at its end."
        listen(Update(stage=STAGE, message=message))
    if not stop():
        archive.abandon_unfinished()
    return campaign.results


def proxy_fidelity(plan: Plan, seed: int) -> Fidelity:
    """All proxies of a run train alike and on one seed, so that they differ by their candidates only."""
    return Fidelity.proxy(
        plan.rungs, batch_size=plan.batch_size, seed=seed, validation_examples=plan.validation_examples
    )


def _run_tune(
    pool: Pool,
    places: int,
    campaign: Campaign,
    searcher: CampaignSearcher,
    clock: Clock,
    rungs: tuple[int, ...],
    folder: Path,
    stop: Stop,
) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    with engine_errors(), _quiet_tune(places):
        tune.run(
            tune.with_parameters(Proxy, pool=pool),
            name="search",
            metric=METRIC,
            mode="min",
            search_alg=searcher,
            scheduler=CampaignScheduler(campaign, clock, searcher, rungs),
            stop=StopSwitch(stop),
            num_samples=-1,
            resources_per_trial={"cpu": CPU_SHARE},
            reuse_actors=True,
            storage_path=str(folder.resolve()),
            trial_dirname_creator=lambda trial: f"trial_{trial.config['number']:05d}",
            # Otherwise Tune swallows what our callbacks raise, such as a full disk.
            fail_fast="raise",
            verbose=0,
        )


@contextmanager
def _quiet_tune(places: int) -> Iterator[None]:
    # Tune starts as many processes side by side as may be pending.
    settings = _TUNE_SETTINGS | {"TUNE_MAX_PENDING_TRIALS_PG": str(places)}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    # Its summary of a run looks for log files, which are switched off, and its controller prints the trace of every
    # error that it then raises.
    loggers = [logging.getLogger(f"ray.tune.{name}") for name in _TALKATIVE]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _tell(campaign: Campaign, plan: Plan, clock: Clock, listen: Listener, finished: TrialResult | None) -> None:
    results = campaign.results
    last = plan.rungs[-1]
    done = len(results) / plan.trial_limit if plan.trial_limit is not None else clock.used_share
    states = [result.state for result in results]
    full_depth = [result for result in results if result.role is Role.FULL_DEPTH]
    listen(
        Update(
            stage=STAGE,
            message="" if finished is None else _line(finished),
            done=done,
            best_loss=_best(results, last),
            baseline_loss=_best(full_depth, last),
            running=len(campaign.running),
            finished=states.count(TrialState.COMPLETE),
            pruned=states.count(TrialState.PRUNED),
            failed=states.count(TrialState.DIVERGED) + states.count(TrialState.OUT_OF_MEMORY),
        )
    )


def _best(results: list[TrialResult], steps: int) -> float | None:
    return min((loss for result in results if (loss := result.loss_at(steps)) is not None), default=None)


def _line(result: TrialResult) -> str:
    reading = f"loss {result.last_loss:.4f} after {result.steps} steps" if result.points else "no reading"
    why = f" ({result.reason})" if result.reason else ""
    return f"#{result.number} {result.candidate}: {result.state.value.replace('_', ' ')}, {reading}{why}"
