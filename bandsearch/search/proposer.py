"""Proposing the next candidate: Optuna's samplers as a pure function of what is known."""

from __future__ import annotations

import hashlib
import random
import statistics
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.samplers import RandomSampler
from optuna.trial import TrialState as OptunaState

from bandsearch.search.candidates import CandidateCode
from bandsearch.search.strata import WidthClass, width_class
from bandsearch.search.told import Told, ToldSampler
from bandsearch.values.candidate import Candidate
from bandsearch.values.spec import Objective
from bandsearch.values.trial import TrialResult, TrialState

# Pseudo-count that holds back the correction for width while a class has few readings at a rung.
SHRINKAGE = 2.0
# A proxy trained again gives the same loss again, so another candidate is asked for: so often of the sampler and at
# random among the widths whose turn it is, then at random in the whole space. If one in 16 draws were new, all of
# those would miss it once in 60 times.
ATTEMPTS, DRAWS = 8, 64

optuna.logging.set_verbosity(optuna.logging.WARNING)


class Sampler(StrEnum):
    """TPE (multivariate, arXiv 2304.11127), or the random arm that TPE must not lose to."""

    TPE = "tpe"
    RANDOM = "random"


def propose_params(
    code: CandidateCode,
    results: Sequence[TrialResult],
    pending: Sequence[Candidate],
    *,
    seed: int,
    number: int,
    sampler: Sampler = Sampler.TPE,
    objective: Objective = Objective.LOSS,
) -> dict[str, Any] | None:
    """Parameters of candidate `number`. Equal arguments give equal parameters, on every call and machine.

    They are never those of what has been tried or is under way, nor nearly the same rate, nor of a band whose layers
    have none of the targets: then the next are asked for, and None says that nothing else was found in the space.

    The sampler is seeded from (seed, number) and sees a study made for this one question, so nothing but the results
    decides. In that study:

    - The width classes take turns (`number` decides), because short proxies favour wide bands: left to itself the
      sampler would soon propose nothing else. What is known of other widths serves too: a band of another class stands
      at the same relative width within the class whose turn it is, with its loss relative to its own class
      (`adjusted_losses`).
    - A stopped training is PRUNED with that loss at its last step. TPE ranks all of those behind the complete ones,
      the longest trained first, so readings of different rungs are never compared.
    - A band stands at values drawn from all that decode to it (`CandidateCode.drawn`): where full depth starts decides
      nothing, so it must not say that the middle is good.
    - Diverged and out-of-memory trainings are PRUNED at step 0 with an infinite loss: always among the bad ones.
      Candidates still `pending` count as bad (constant liar).

    For the Pareto front of loss and trainable parameters size has a price of its own, so there are no turns and no
    adjustment; Optuna has no order for pruned trials with two objectives and takes them for good ones last.
    """
    known: dict[object, list[Candidate]] = {}
    for other in (*(result.candidate for result in results), *pending):
        known.setdefault(other.form, []).append(other)
    for params in _asked(code, results, pending, _seed_of(seed, number), number, sampler, objective):
        candidate = code.decode(params)
        alike = known.get(candidate.form, ())
        if code.adapts(candidate) and not any(candidate.resembles(other) for other in alike):
            return params
    return None


def _asked(
    code: CandidateCode,
    results: Sequence[TrialResult],
    pending: Sequence[Candidate],
    seed: int,
    number: int,
    sampler: Sampler,
    objective: Objective,
) -> Iterator[dict[str, Any]]:
    view = optuna.create_study(
        directions=["minimize"] if objective is not Objective.PARETO else ["minimize", "minimize"],
        sampler=RandomSampler(seed=seed),
    )
    if sampler is Sampler.TPE:
        distributions, turn = code.distributions, None
        if objective is not Objective.PARETO and "width" in distributions and code.space.bands.count == 1:
            turn = code.width_turns[number % len(code.width_turns)]
            distributions = distributions | {"width": IntDistribution(*turn)}
        view.add_trials(_told(code, results, pending, objective, seed, distributions, turn))
        for drawn_by in (ToldSampler(seed, distributions), RandomSampler(seed=seed)):
            view.sampler = drawn_by
            for _ in range(ATTEMPTS):
                yield dict(view.ask(distributions).params)
    for _ in range(DRAWS):
        yield dict(view.ask(code.distributions).params)


def _moved(width: int, turns: Sequence[tuple[int, int]], turn: tuple[int, int]) -> int:
    """The width in `turn` at the place that `width` has in its own class; the middle where that has one width only."""
    low, high = next((low, high) for low, high in turns if low <= width <= high)
    place = (width - low) / (high - low) if high > low else 0.5
    return turn[0] + round(place * (turn[1] - turn[0]))


def adjusted_losses(results: Sequence[TrialResult], layer_count: int) -> dict[int, float]:
    """Loss by number, each relative to its width class: last loss - shrunken (class median - median), at that rung.

    Baselines inform the medians of their width. Only finished trainings with a reading count.
    """
    readings: dict[int, dict[WidthClass, list[float]]] = {}
    for result in results:
        for point in result.points:
            of_class = readings.setdefault(point.steps, {}).setdefault(width_class(result.candidate, layer_count), [])
            of_class.append(point.loss)
    worth = {steps: _worth(by_class) for steps, by_class in readings.items()}
    return {
        result.number: result.points[-1].loss - worth[result.steps][width_class(result.candidate, layer_count)]
        for result in results
        if result.points and result.state in (TrialState.COMPLETE, TrialState.PRUNED)
    }


def _worth(by_class: Mapping[WidthClass, Sequence[float]]) -> dict[WidthClass, float]:
    """What every width class loses more than all of them at a rung, shrunken."""
    everything = statistics.median(loss for losses in by_class.values() for loss in losses)
    return {
        width: (statistics.median(losses) - everything) * len(losses) / (len(losses) + SHRINKAGE)
        for width, losses in by_class.items()
    }


def _told(
    code: CandidateCode,
    results: Sequence[TrialResult],
    pending: Sequence[Candidate],
    objective: Objective,
    seed: int,
    distributions: Mapping[str, BaseDistribution],
    turn: tuple[int, int] | None,
) -> list[Told]:
    """What TPE is told, in the order of proposing, without the candidates that lie outside the space; with a `turn`
    every width is moved there."""

    def drawn(candidate: Candidate) -> dict[str, Any] | None:
        params = code.drawn(candidate, _numbers(seed, candidate))
        if params is None or turn is None:
            return params
        return params | {"width": _moved(params["width"], code.width_turns, turn)}

    adjusted = adjusted_losses(results, code.layer_count)
    told = []
    for result in sorted(results, key=lambda result: result.number):
        params = drawn(result.candidate)
        ran_out_of_time = result.state is TrialState.PRUNED and not result.points
        if params is None or ran_out_of_time:
            continue
        state, values, readings = OptunaState.PRUNED, None, {}
        if objective is Objective.PARETO:
            if result.state is TrialState.COMPLETE:
                state, values = OptunaState.COMPLETE, [result.points[-1].loss, float(result.trainable_parameters)]
        elif result.state is TrialState.COMPLETE:
            state, values = OptunaState.COMPLETE, [adjusted[result.number]]
        elif result.state is TrialState.PRUNED:
            readings = {result.steps: adjusted[result.number]}
        else:
            readings = {0: float("inf")}
        told.append(Told(state, params, distributions, values, readings))
    for candidate in pending:
        params = drawn(candidate)
        if params is not None:
            told.append(Told(OptunaState.RUNNING, params, distributions))
    return told


def _numbers(seed: int, candidate: Candidate) -> random.Random:
    return random.Random(f"{seed} {candidate.identity}")


def _seed_of(seed: int, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:4], "big")
