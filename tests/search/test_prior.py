"""What a search takes from earlier runs: from its own model before siblings, at equal depth, and never much."""

from __future__ import annotations

import statistics

import pytest
from atlas_records import a_record, candidate_on
from bench import planted_search, regret
from hypothesis import given
from hypothesis import strategies as st
from surface import LAYOUT, RATES, Surface, profile

from bandsearch.search.baselines import openings
from bandsearch.search.candidates import CandidateCode
from bandsearch.search.prior import MOST, fitted, most_suggestions, prior_from
from bandsearch.values.atlas import AtlasRecord, Prior, Suggestion
from bandsearch.values.band import Band
from bandsearch.values.candidate import Candidate, Method, Role
from bandsearch.values.evaluation import Choice, Trained
from bandsearch.values.space import BandSpace, SearchSpace

OWN = "0123456789abcdef"
CODE = CandidateCode(SearchSpace(name="planted"), LAYOUT, RATES)


def code_of(layers: int, space: SearchSpace | None = None) -> CandidateCode:
    layout = LAYOUT.model_copy(update={"layer_count": layers})
    return CandidateCode(space or SearchSpace(name="planted"), layout, RATES)


def prior(records: list[AtlasRecord], code: CandidateCode = CODE, data: str = "d2") -> Prior:
    layout = LAYOUT.model_copy(update={"layer_count": code.layer_count})
    return prior_from(records, code, fingerprint=OWN, layout=layout, data_fingerprint=data, rate=RATES.best)


bands = st.integers(0, 11).flatmap(
    lambda start: st.integers(start + 1, 12).map(lambda stop: Band(start=start, stop=stop))
)


@given(bands)
def test_twice_the_depth_and_back_is_the_same_band(band: Band) -> None:
    deeper = band.rescaled(12, 24)
    assert (deeper.start, deeper.stop) == (2 * band.start, 2 * band.stop)
    assert deeper.rescaled(24, 12) == band


@given(st.integers(1, 80), st.integers(1, 80), st.data())
def test_a_band_keeps_its_relative_depth(layers: int, to: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, layers - 1))
    band = Band(start=start, stop=data.draw(st.integers(start + 1, layers)))
    moved = band.rescaled(layers, to)
    assert 0 <= moved.start < moved.stop <= to
    # Half a layer by rounding, a whole one where a narrow band would have become empty.
    assert abs(moved.start / to - band.start / layers) <= 1 / to
    assert abs(moved.stop / to - band.stop / layers) <= 1 / to
    if layers == to:
        assert moved == band
    if band == Band.full(layers):
        assert moved == Band.full(to)


def test_the_own_model_comes_before_a_sibling_and_its_own_data_first() -> None:
    sibling = a_record(candidate_on(0, 6), layers=24, fingerprint="b", slug="sibling", data_fingerprint="d2")
    own = a_record(candidate_on(6, 9), date="2026-01-01T00:00:00+00:00")
    same_data = a_record(candidate_on(2, 6), date="2025-01-01T00:00:00+00:00", data_fingerprint="d2")
    stranger = a_record(candidate_on(1, 11), family="other", fingerprint="c")
    found = prior([sibling, own, stranger]).suggestions
    assert [each.candidate.bands[0] for each in found] == [
        Band(start=6, stop=9),
        Band(start=0, stop=3),
        Band(start=6, stop=9),
        Band.full(12),
    ]
    assert found[0].reason == "On this model layers 6-8 of 12 won on mine.jsonl (2026-01-01)."
    assert "On sibling, of the same family, layers 0-5 of 24 won" in found[1].reason
    assert found[2].candidate.learning_rate == RATES.best
    assert prior([sibling, own, same_data]).suggestions[0].candidate.bands == (Band(start=2, stop=6),)
    assert prior([stranger]).suggestions == ()


def test_of_siblings_the_most_alike_comes_first() -> None:
    far = a_record(candidate_on(0, 16), layers=48, hidden=256, fingerprint="f", slug="far")
    near = a_record(candidate_on(8, 12), layers=16, fingerprint="n", slug="near")
    assert prior([far, near]).suggestions[0].candidate.bands == (Band(start=6, stop=9),)


def test_where_full_depth_won_the_best_band_behind_it_is_recommended() -> None:
    record = a_record(candidate_on(0, 12, 1e-3), others=(candidate_on(3, 9),))
    (first, *_) = prior([record]).suggestions
    assert first.candidate.bands == (Band(start=3, stop=9),)
    assert "best beside full depth, which won," in first.reason


def test_a_winner_on_all_layers_is_recommended_as_one() -> None:
    thin = candidate_on(0, 12, 4e-3, rank=4)
    (first, *others) = prior([a_record(thin, others=(candidate_on(3, 9),))]).suggestions
    assert first.candidate == thin
    assert first.reason == "On this model all 12 layers at rank 4 won on mine.jsonl (2026-03-01)."
    assert all(len(each.candidate.layers) == 12 for each in others)
    opened = openings(CODE, profile(), 0, 40, [first])
    assert (opened[1].candidate, opened[1].role) == (thin, Role.SEARCHED)


def test_who_was_confirmed_on_one_seed_or_compared_with_nobody_is_not_recommended() -> None:
    record = a_record(candidate_on(0, 12, 1e-3), others=(candidate_on(3, 9), candidate_on(2, 5)))
    full, lucky, second = record.winner.finalists
    lucky = lucky.model_copy(update={"loss": 0.1, "losses": (0.1,)})
    winner = record.winner.model_copy(update={"finalists": (lucky, full, second)})
    (first, *_) = prior([record.model_copy(update={"winner": winner})]).suggestions
    assert first.candidate.bands == (Band(start=2, stop=5),)
    nobody = winner.model_copy(update={"choice": Choice.UNCOMPARED})
    assert prior([record.model_copy(update={"winner": nobody})]).suggestions == ()


def test_of_two_rates_that_had_the_final_training_the_better_is_known() -> None:
    record, tuned = a_record(candidate_on(0, 12, 1e-3)), candidate_on(0, 12, 5e-3)
    trainings = tuple(
        Trained(candidate=candidate_on(0, 12, rate), learning_rate=rate, steps=40, kept_step=40)
        for rate in (5e-3, 1e-3)
    )
    alone = {
        "candidate": tuned,
        "baseline": tuned,
        "choice": Choice.UNCOMPARED,
        "finalists": (),
        "trainings": trainings,
    }
    (only,) = prior([record.model_copy(update={"winner": record.winner.model_copy(update=alone)})]).suggestions
    assert only.candidate == tuned


def test_the_rate_that_was_the_best_for_full_depth_comes_last() -> None:
    won, tuned = a_record(candidate_on(0, 12, 1e-3)), candidate_on(0, 12, 5e-3)
    record = won.model_copy(update={"winner": won.winner.model_copy(update={"candidate": tuned, "baseline": tuned})})
    (only,) = prior([record]).suggestions
    assert only.candidate == tuned
    assert "On this model this was full depth's best rate on mine.jsonl" in only.reason
    opened = openings(CODE, profile(), 0, 40, [only])
    assert (opened[1].candidate, opened[1].role) == (only.candidate, Role.FULL_DEPTH)
    # Of one that a band won, behind that band.
    assert [each.candidate.learning_rate for each in prior([a_record()]).suggestions] == [3e-3, RATES.best, 1e-3]
    several = [a_record(candidate_on(start, start + 3), data=f"{start}.jsonl") for start in range(2)]
    assert [len(each.candidate.layers) for each in prior(several).suggestions] == [3, 3, 3, 12]


def test_candidates_are_brought_into_the_space() -> None:
    space = SearchSpace(
        name="x", ranks=(4, 8), targets=("attention",), bands=BandSpace(snap=2), methods=(Method.RSLORA,), alpha="2r"
    )
    here = fitted(candidate_on(3, 8, rate=1.0, rank=64), 12, code_of(12, space))
    assert here == Candidate(
        bands=(Band(start=4, stop=8),),
        rank=8,
        alpha=16,
        targets=("attention",),
        learning_rate=RATES.high,
        method=Method.RSLORA,
    )
    narrow = SearchSpace(name="x", bands=BandSpace(width=(0.1, 0.3)))
    assert fitted(candidate_on(2, 10), 12, code_of(12, narrow)) is None


@pytest.mark.parametrize("targets", [("attention", "mlp"), ("mlp", "attention"), ("all",)])
def test_all_modules_are_all_modules_by_whatever_name(targets: tuple[str, ...]) -> None:
    known = candidate_on(3, 8).model_copy(update={"targets": targets})
    for offered, expected in (("all", ("all",)), ("attention+mlp", ("attention", "mlp"))):
        here = fitted(known, 12, code_of(12, SearchSpace(name="x", targets=("attention", offered))))
        assert here is not None
        assert here.targets == expected


@given(bands, st.sampled_from([1, 2, 3, 5]), st.integers(1, 40))
def test_whatever_is_recommended_can_be_tried(band: Band, snap: int, layers: int) -> None:
    code = code_of(layers, SearchSpace(name="x", bands=BandSpace(snap=snap)))
    here = fitted(candidate_on(band.start, band.stop), 12, code)
    assert here is None or code.decode(code.encode(here) or {}) == here


@pytest.mark.parametrize("expected", [1, 8, 24, 200])
def test_suggestions_open_the_search_with_their_reasons_and_are_few(expected: int) -> None:
    many = [a_record(candidate_on(start, start + 3), data=f"{start}.jsonl") for start in range(8)]
    suggested = prior(many).suggestions
    assert len(suggested) == MOST + 1
    without = openings(CODE, profile(), 0, expected)
    opened = openings(CODE, profile(), 0, expected, suggested)
    ours = [each for each in opened if each.proposed_by == "atlas"]
    assert len(ours) == min(MOST, most_suggestions(expected)) == len(opened) - len(without)
    assert [(each.candidate, each.reason) for each in ours] == [
        (each.candidate, each.reason) for each in suggested[: len(ours)]
    ]
    assert all(each.role is Role.SEARCHED for each in ours)
    assert opened[0].role is Role.FULL_DEPTH
    assert opened[1] == ours[0]
    assert [each for each in opened if each not in ours] == list(without)


def test_the_same_prior_gives_the_same_search() -> None:
    suggested = prior([a_record()]).suggestions
    once, again = (planted_search(Surface(), 3, 24, prior=suggested) for _ in range(2))
    assert once == again
    assert [each.proposed_by for each in once].count("atlas") == 2
    assert planted_search(Surface(), 3, 24, prior=()) == planted_search(Surface(), 3, 24)


def misleading() -> tuple[Suggestion, ...]:
    wrong = [candidate_on(start, 12, rate) for start, rate in ((10, 1e-4), (11, 1e-2), (9, 1e-4))]
    return tuple(Suggestion(candidate=each.model_copy(update={"rank": 4}), reason="wrong") for each in wrong)


def test_a_good_prior_finds_the_optimum_early_and_a_misleading_one_costs_little() -> None:
    """Median regret over seeds after equally many candidates. Noise between medians of two halves is about 0.02."""
    surface, seeds = Surface(), range(15)

    def median(trials: int, suggested: tuple[Suggestion, ...]) -> float:
        return statistics.median(
            regret(surface, planted_search(surface, seed, trials, prior=suggested)) for seed in seeds
        )

    good = prior([a_record(candidate_on(4, 8))]).suggestions
    assert median(12, good) < 0.5 * median(24, ())
    assert median(40, misleading()) < median(40, ()) + 0.03
    # With its few openings given back there is nothing left of the cost.
    assert median(40 + MOST, misleading()) < median(40, ()) + 0.02
