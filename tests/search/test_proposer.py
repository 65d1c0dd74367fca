from __future__ import annotations

import itertools
import random
import statistics

import optuna
import pytest
from bench import parameters, planted_search, regret
from surface import LAYERS, LAYOUT, RATES, Surface
from trial_results import a_result

from bandsearch.search.candidates import CandidateCode
from bandsearch.search.proposer import Sampler, adjusted_losses, propose_params
from bandsearch.search.strata import WidthClass, width_class
from bandsearch.search.told import Told, ToldSampler
from bandsearch.values.atlas import Suggestion
from bandsearch.values.band import Band
from bandsearch.values.candidate import Candidate
from bandsearch.values.space import BandSpace, RateSpace, SearchSpace
from bandsearch.values.spec import Objective
from bandsearch.values.trial import TrialResult, TrialState

CODE = CandidateCode(SearchSpace(name="x"), LAYOUT, RATES)


def candidate(start: int, stop: int, rate: float = 1e-3) -> Candidate:
    return Candidate(bands=(Band(start=start, stop=stop),), rank=8, alpha=32, targets=("all",), learning_rate=rate)


def result(
    number: int, trained: Candidate, losses: list[float], state: TrialState = TrialState.COMPLETE
) -> TrialResult:
    return a_result(number, trained, losses, state=state, trainable_parameters=parameters(trained))


def rates_proposed(results: list[TrialResult], pending: list[Candidate] | None = None) -> list[float]:
    return [
        CODE.decode(propose_params(CODE, results, pending or [], seed=seed, number=99)).learning_rate
        for seed in range(40)
    ]


def spread(rates: list[float], state: TrialState, losses: list[float], first: int = 0) -> list[TrialResult]:
    """Results at some rates on bands that have nothing to do with it."""
    numbers = random.Random(len(rates))
    out = []
    for index, rate in enumerate(rates):
        start = numbers.randrange(8)
        out.append(result(first + index, candidate(start, start + 4, rate), losses, state))
    return out


@pytest.mark.parametrize("sampler", list(Sampler))
def test_proposals_are_a_function_of_results_seed_and_number(sampler: Sampler) -> None:
    results = planted_search(Surface(), 0, 20)
    shuffled = random.Random(1).sample(results, len(results))

    def ask(seed: int, number: int) -> dict[str, object]:
        return propose_params(CODE, shuffled, [candidate(2, 5)], seed=seed, number=number, sampler=sampler)

    reference = propose_params(CODE, results, [candidate(2, 5)], seed=3, number=20, sampler=sampler)
    assert ask(3, 20) == reference
    assert ask(3, 21) != reference
    assert ask(4, 20) != reference


def test_low_losses_attract_and_failures_repel() -> None:
    good = spread([2e-3] * 5, TrialState.COMPLETE, [0.9, 0.3])
    bad = spread([1.5e-4] * 15, TrialState.COMPLETE, [0.9, 0.6], first=5)
    assert statistics.median(rates_proposed(good + bad)) > 1e-3
    failed = spread([9e-3] * 20, TrialState.DIVERGED, [], first=20)
    assert statistics.median(rates_proposed(good + bad + failed)) < statistics.median(rates_proposed(good + bad)) * 1.5
    assert max(rates_proposed(good + failed)) < 8e-3


def test_a_short_reading_never_outranks_a_long_one() -> None:
    """Losses at 30 steps that are lower than others' at 90 (by luck or because of a scale) are not taken for better."""
    long = spread([3e-3] * 4, TrialState.COMPLETE, [0.9, 0.5])
    short = spread([3e-4] * 30, TrialState.PRUNED, [0.4], first=4)
    assert statistics.median(rates_proposed(long + short)) > 1e-3


def test_adjusted_losses_take_out_what_width_is_worth_at_a_rung() -> None:
    results = [
        *(result(n, candidate(n, n + 3), [0.8 + 0.01 * n, 0.6 + 0.01 * n]) for n in range(6)),
        *(result(6 + n, candidate(0, 10 + n % 2), [0.5 + 0.01 * n, 0.3 + 0.01 * n]) for n in range(6)),
    ]
    adjusted = adjusted_losses(results, LAYERS)
    narrow, wide = [adjusted[n] for n in range(6)], [adjusted[n] for n in range(6, 12)]
    assert narrow == sorted(narrow)
    assert abs(statistics.median(narrow) - statistics.median(wide)) < 0.1
    assert width_class(candidate(0, 4), LAYERS) is WidthClass.NARROW
    assert width_class(candidate(0, 8), LAYERS) is WidthClass.MIDDLE
    assert width_class(candidate(0, 9), LAYERS) is WidthClass.WIDE


def test_without_other_widths_losses_are_left_alone() -> None:
    results = [result(n, candidate(n, n + 3), [0.8, 0.6 + 0.01 * n]) for n in range(4)]
    assert adjusted_losses(results, LAYERS) == {n: pytest.approx(0.6 + 0.01 * n) for n in range(4)}


def test_on_the_planted_surface_the_sampler_does_not_lose_to_random_search() -> None:
    shapes = (Surface(), Surface(start=1, width=10), Surface(start=2, width=6, rate=1e-3))
    tpe = [regret(shape, planted_search(shape, seed, 40, Sampler.TPE)) for shape in shapes for seed in range(7)]
    chance = [regret(shape, planted_search(shape, seed, 40, Sampler.RANDOM)) for shape in shapes for seed in range(7)]
    assert statistics.median(tpe) < statistics.median(chance)


def test_nothing_is_proposed_again_that_was_tried() -> None:
    """A proxy depends on nothing but its candidate: trained again at nearly the same rate it says nothing new."""
    suggested = [Suggestion(candidate=candidate(4, 8, rate), reason="") for rate in (9e-4, 1e-3, 1.2e-3)]
    for sampler in Sampler:
        results = planted_search(Surface(), 0, 90, sampler, prior=suggested)
        assert len(results) == 90
        for one, other in itertools.combinations(results, 2):
            assert not one.candidate.resembles(other.candidate)


@pytest.mark.parametrize("sampler", list(Sampler))
def test_a_coarse_space_is_tried_as_good_as_whole_and_then_the_search_ends(sampler: Sampler) -> None:
    """The 78 runs of neighbouring layers at one rate, narrow and wide ones in turn, though few are wide."""
    space = SearchSpace(
        name="coarse",
        ranks=(16,),
        targets=("all",),
        bands=BandSpace(split=False, width=(0.01, 1.0)),
        learning_rate=RateSpace(low=1e-3, high=1e-3),
    )
    tried = [
        {str(each.candidate) for each in planted_search(Surface(), seed, 200, sampler, space=space)}
        for seed in range(3)
    ]
    assert all(70 <= len(each) <= 78 for each in tried)


def test_full_depth_that_leads_says_nothing_of_where_narrower_bands_sit() -> None:
    results = spread([1e-3] * 60, TrialState.COMPLETE, [0.9, 0.6], first=60)
    results += [result(n, candidate(0, LAYERS, 1e-3 * 1.02**n), [0.5, 0.1]) for n in range(60)]
    number = next(n for n in range(200, 210) if n % len(CODE.width_turns) == 0)
    proposed = [CODE.decode(propose_params(CODE, results, [], seed=seed, number=number)) for seed in range(40)]
    assert all(len(each.layers) <= LAYERS / 3 for each in proposed)
    # Of starts that are equally likely it is 2.6; of the middle of the network alone 0.6.
    assert statistics.pstdev(statistics.mean(each.layers) for each in proposed) > 2


def test_band_and_rate_are_found() -> None:
    surface = Surface()
    everything = [regret(surface, planted_search(surface, seed, 60)) for seed in range(5)]
    found = sum(lost < 0.08 for lost in everything)
    assert found >= 4, everything


def test_two_objectives_find_small_candidates_as_well() -> None:
    surface = Surface()
    results = planted_search(surface, 0, 50, objective=Objective.PARETO)
    sampled = [each for each in results if each.proposed_by == "sampler"]
    plain = [each for each in planted_search(surface, 0, 50) if each.proposed_by == "sampler"]
    assert statistics.median(e.trainable_parameters for e in sampled) < statistics.median(
        e.trainable_parameters for e in plain
    )


def asked(sampler: optuna.samplers.BaseSampler, told: list[optuna.trial.FrozenTrial]) -> list[dict[str, object]]:
    study = optuna.create_study(sampler=sampler)
    study.add_trials(told)
    return [dict(study.ask(CODE.distributions).params) for _ in range(4)]


def test_the_sampler_proposes_what_optunas_own_does() -> None:
    numbers = random.Random(0)
    told, plain = [], []
    for each in planted_search(Surface(), 0, 40):
        params = CODE.drawn(each.candidate, numbers)
        if params is not None:
            complete = each.state is TrialState.COMPLETE
            state = optuna.trial.TrialState.COMPLETE if complete else optuna.trial.TrialState.PRUNED
            values = [each.points[-1].loss] if complete else None
            readings = {} if complete else {each.steps: each.points[-1].loss}
            told.append(Told(state, params, CODE.distributions, values, readings))
            plain.append(
                optuna.trial.create_trial(
                    state=state,
                    params=params,
                    distributions=CODE.distributions,
                    values=values,
                    intermediate_values=readings,
                )
            )
    own = optuna.samplers.TPESampler(seed=3, n_startup_trials=1, multivariate=True)
    assert asked(ToldSampler(3, CODE.distributions), told) == asked(own, plain)
