"""Ray Tune's part of a search played in one process: asks the searcher, steps the real proxies, obeys the scheduler."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bandsearch.search.campaign import Campaign
from bandsearch.search.clock import Clock
from bandsearch.search.ports import Pool
from bandsearch.search.proxy import Proxy
from bandsearch.search.searcher import CampaignScheduler, CampaignSearcher


def run_in_process(
    pool: Pool,
    places: int,
    campaign: Campaign,
    searcher: CampaignSearcher,
    clock: Clock,
    rungs: tuple[int, ...],
    folder: Path,
    stop: Callable[[], bool],
) -> None:
    """Takes the place of `bandsearch.search.search._run_tune`; what runs side by side takes turns."""
    scheduler = CampaignScheduler(campaign, clock, searcher, rungs)
    live: dict[str, Proxy] = {}
    asked, finished = 0, False
    while not stop():
        while not finished:
            trial_id = f"trial {asked}"
            config = searcher.suggest(trial_id)
            if config == "FINISHED":
                finished = True
            elif config is None:
                break
            else:
                asked += 1
                live[trial_id] = object.__new__(Proxy)
                live[trial_id].setup(config, pool)
        if not live:
            return
        for trial_id, proxy in list(live.items()):
            result: dict[str, Any] = proxy.step()
            if scheduler.on_trial_result(None, SimpleNamespace(trial_id=trial_id), result) == "STOP":
                del live[trial_id]
                searcher.on_trial_complete(trial_id, result)
                proxy.cleanup()
