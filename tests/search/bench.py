"""Drives a campaign over a planted surface without Ray, as a table of finished trainings would."""

from __future__ import annotations

from collections.abc import Sequence

from surface import LAYERS, LAYOUT, RATES, Surface, profile

from bandsearch.search.campaign import Campaign
from bandsearch.search.candidates import CandidateCode
from bandsearch.search.finalists import pick_finalists
from bandsearch.search.proposer import Sampler
from bandsearch.values.atlas import Suggestion
from bandsearch.values.candidate import Candidate
from bandsearch.values.space import SearchSpace
from bandsearch.values.spec import Objective
from bandsearch.values.trial import Point, TrialResult

RUNGS = (30, 90)


def parameters(candidate: Candidate) -> int:
    width = sum(linear.in_features + linear.out_features for linear in LAYOUT.targets(candidate.targets))
    return candidate.rank * width * len(candidate.layers)


def planted_search(
    surface: Surface,
    seed: int,
    trials: int,
    sampler: Sampler = Sampler.TPE,
    objective: Objective = Objective.LOSS,
    prior: Sequence[Suggestion] = (),
    space: SearchSpace | None = None,
) -> list[TrialResult]:
    campaign = Campaign(
        CandidateCode(space or SearchSpace(name="planted"), LAYOUT, RATES),
        profile(),
        rungs=RUNGS,
        eta=3,
        seed=seed,
        expected=trials,
        parameters=parameters,
        sampler=sampler,
        objective=objective,
        prior=prior,
    )
    for _ in range(trials):
        proposal = campaign.propose()
        if proposal is None:
            break
        for steps in RUNGS:
            loss = surface.loss(proposal.candidate, steps, proposal.seed)
            if not campaign.observe(proposal.number, Point(steps=steps, loss=loss, seconds=0.0)).goes_on:
                break
        campaign.finish(proposal.number)
    return campaign.results


def regret(surface: Surface, results: list[TrialResult], searched: int = 4) -> float:
    """How much worse the best searched finalist ends than the planted optimum of the space."""
    finalists = [each for each in pick_finalists(results, LAYERS, searched) if not each.role.is_baseline]
    best = min(surface.end_loss(each.candidate) for each in finalists)
    optimum = surface.end_loss(surface.optimum())
    return best - optimum
