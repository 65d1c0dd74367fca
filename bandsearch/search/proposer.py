"""Proposing the next candidate: Optuna's samplers as a pure function of what is known."""

from __future__ import annotations

import hashlib
import random
import statistics
from collections.abc import Iterator, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any

import optuna
from optuna.distributions import IntDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from bandsearch.search.candidates import CandidateCode
from bandsearch.search.strata import WidthClass, width_class
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
    known = [*(result.candidate for result in results), *pending]
    for params in _asked(code, results, pending, _seed_of(seed, number), number, sampler, objective):
        candidate = code.decode(params)
        if code.adapts(candidate) and not any(candidate.resembles(other) for other in known):
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
        sampler=_sampler(sampler, seed),
    )
    if sampler is Sampler.TPE:
        told = _told(code, results, pending, objective, seed)
        distributions = code.distributions
        if objective is not Objective.PARETO and "width" in distributions and code.space.bands.count == 1:
            turn = code.width_turns[number % len(code.width_turns)]
            distributions = distributions | {"width": IntDistribution(*turn)}
            for trial in told:
                trial.params = trial.params | {"width": _moved(trial.params["width"], code.width_turns, turn)}
                trial.distributions = distributions
        view.add_trials(told)
        for drawn_by in (view.sampler, _sampler(Sampler.RANDOM, seed)):
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
    adjusted = {}
    for result in results:
        if not result.points or result.state not in (TrialState.COMPLETE, TrialState.PRUNED):
            continue
        last = result.points[-1]
        at_rung = readings[last.steps]
        same = at_rung[width_class(result.candidate, layer_count)]
        others = [loss for losses in at_rung.values() for loss in losses]
        excess = statistics.median(same) - statistics.median(others)
        adjusted[result.number] = last.loss - excess * len(same) / (len(same) + SHRINKAGE)
    return adjusted


def _told(
    code: CandidateCode, results: Sequence[TrialResult], pending: Sequence[Candidate], objective: Objective, seed: int
) -> list[_Told]:
    """What TPE is told, in the order of proposing, without the candidates that lie outside the space."""
    adjusted = adjusted_losses(results, code.layer_count)
    told = []
    for result in sorted(results, key=lambda result: result.number):
        params = code.drawn(result.candidate, _numbers(seed, result.candidate))
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
        told.append(_Told.of(code, state, params, values, readings))
    for candidate in pending:
        params = code.drawn(candidate, _numbers(seed, candidate))
        if params is not None:
            told.append(_Told.of(code, OptunaState.RUNNING, params))
    return told


class _Told(FrozenTrial):  # type: ignore[misc]
    """A trial of one study only. A storage copies what it is given, which took a third of a proposal's time."""

    @classmethod
    def of(
        cls,
        code: CandidateCode,
        state: OptunaState,
        params: dict[str, Any],
        values: list[float] | None = None,
        readings: dict[int, float] | None = None,
    ) -> _Told:
        now = datetime.now()
        return cls(
            number=-1,
            trial_id=-1,
            state=state,
            value=None,
            values=values,
            datetime_start=now,
            datetime_complete=now if state.is_finished() else None,
            params=params,
            distributions=code.distributions,
            user_attrs={},
            system_attrs={},
            intermediate_values=readings or {},
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> _Told:
        return self


def _sampler(sampler: Sampler, seed: int) -> BaseSampler:
    if sampler is Sampler.RANDOM:
        return RandomSampler(seed=seed)
    return TPESampler(seed=seed, n_startup_trials=1, multivariate=True)


def _numbers(seed: int, candidate: Candidate) -> random.Random:
    return random.Random(f"{seed} {candidate.identity}")


def _seed_of(seed: int, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:4], "big")
