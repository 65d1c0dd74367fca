from __future__ import annotations

import math

import pytest
from bench import planted_search
from surface import LAYERS, LAYOUT, RATES, Surface, profile

from bandsearch.search.baselines import openings, role_of, tuned_rates
from bandsearch.search.candidates import CandidateCode
from bandsearch.search.finalists import pick_finalists
from bandsearch.values.band import Band
from bandsearch.values.candidate import Candidate, Role
from bandsearch.values.layout import Layout
from bandsearch.values.space import BandSpace, RateSpace, SearchSpace


def code_of(layers: int, space: SearchSpace | None = None) -> CandidateCode:
    layout = LAYOUT.model_copy(update={"layer_count": layers})
    return CandidateCode(space or SearchSpace(name="x"), layout, RATES)


@pytest.mark.parametrize("expected", [1, 6, 12, 40, 200])
def test_full_depth_comes_first_and_every_kind_of_baseline_is_there(expected: int) -> None:
    opened = openings(code_of(10), profile(10), 0, expected)
    assert opened[0].role is Role.FULL_DEPTH
    assert {opening.role for opening in opened} == set(Role)
    baselines = [opening for opening in opened if opening.role.is_baseline]
    assert len(baselines) <= max(5, expected // 3)
    assert len({opening.candidate for opening in opened}) == len(opened)


def test_baselines_are_tuned_on_every_linear_module_and_the_partial_ones_are_of_one_size() -> None:
    opened = openings(code_of(10), profile(10), 0, 100)
    by_role = {role: [each.candidate for each in opened if each.role is role] for role in Role}
    assert len({each.learning_rate for each in by_role[Role.FULL_DEPTH]}) == 4
    for role in (Role.MID_BLOCK, Role.LAST_K, Role.RANDOM_BAND):
        assert len({each.learning_rate for each in by_role[role]}) == 3
        assert {each.bands for each in by_role[role]} == {by_role[role][0].bands}
        assert len(by_role[role][0].layers) == 6
    assert by_role[Role.FULL_DEPTH][0].bands == (Band.full(10),)
    assert by_role[Role.MID_BLOCK][0].bands == (Band(start=2, stop=8),)
    assert by_role[Role.LAST_K][0].bands == (Band(start=4, stop=10),)
    assert by_role[Role.RANDOM_BAND][0].bands[0].start not in (2, 4)
    everything = [each for role in Role if role.is_baseline for each in by_role[role]]
    assert {each.targets for each in everything} == {("all",)}
    assert all(1e-4 <= each.learning_rate <= 1e-2 for each in everything)


def test_a_second_rate_is_another_rate() -> None:
    """The range test often ends just above its best rate: half way up would be the same rate again."""
    near = profile(12).rate_range.model_copy(update={"low": 1e-3, "best": 1e-2, "high": 1.8e-2})
    code = CandidateCode(SearchSpace(name="x"), LAYOUT, near)
    assert tuned_rates(code, near.best) == (1e-2, pytest.approx(3.162e-3), 1e-3, 1.8e-2)
    fixed = SearchSpace(name="x", learning_rate=RateSpace(low=2e-4, high=2e-4))
    assert tuned_rates(CandidateCode(fixed, LAYOUT, near), near.best) == (2e-4,)


def test_a_lower_rate_comes_before_a_higher_one_however_far_the_bounds_reach() -> None:
    """What looks best after a few steps is rarely too low for many."""
    bounds = SearchSpace(name="x", learning_rate=RateSpace(low=3e-4, high=1.0))
    best, second, third, *_ = tuned_rates(CandidateCode(bounds, LAYOUT, RATES), 1e-3)
    assert second < best < third


def test_the_random_band_depends_on_the_seed() -> None:
    def random_start(seed: int) -> int:
        opened = openings(code_of(32), profile(32), seed, 20)
        return next(each.candidate.bands[0].start for each in opened if each.role is Role.RANDOM_BAND)

    assert len({random_start(seed) for seed in range(10)}) > 3
    assert random_start(3) == random_start(3)


def test_probe_bands_keep_to_the_space() -> None:
    attention = SearchSpace(name="x", targets=("attention",), ranks=(4,), bands=BandSpace(width=(0.2, 0.6)))
    probed = [each for each in openings(code_of(10, attention), profile(10), 0, 40) if each.proposed_by == "probe"]
    assert [(each.candidate.targets, each.candidate.rank) for each in probed] == [(("attention",), 4)]
    too_narrow = SearchSpace(name="x", bands=BandSpace(split=False, width=(0.1, 0.3)))
    assert all(each.proposed_by == "baseline" for each in openings(code_of(10, too_narrow), profile(10), 0, 40))


def test_the_ends_of_the_network_are_tried_together_where_bands_may_be_split() -> None:
    def ends(layers: int, space: SearchSpace | None = None) -> list[str]:
        opened = openings(code_of(layers, *([space] if space else [])), profile(layers), 0, 60)
        return [str(each.candidate) for each in opened if each.proposed_by == "ends"]

    found = ends(12)
    assert [each.partition(" ")[0] for each in found] == ["0+9-11"] * 3
    assert len(set(found)) == 3
    assert {each.partition(" ")[0] for each in ends(28)} == {"0-1+21-27"}
    assert ends(12, SearchSpace(name="x", bands=BandSpace(split=False))) == []
    assert ends(12, SearchSpace(name="x", bands=BandSpace(count=2, width=(0.1, 0.4)))) == []


def test_full_depth_at_a_low_rank_is_tried_before_any_band() -> None:
    opened = openings(code_of(12), profile(12), 0, 12)
    low = [opening for opening in opened if opening.proposed_by == "low rank"]
    assert [(each.candidate.bands, each.candidate.rank, each.role) for each in low][:1] == [
        ((Band.full(12),), 4, Role.SEARCHED)
    ]
    assert opened[1] == low[0]
    assert low[0].candidate.learning_rate == opened[0].candidate.learning_rate
    one_rank = openings(code_of(12, SearchSpace(name="x", ranks=(16,))), profile(12), 0, 12)
    assert all(opening.proposed_by != "low rank" for opening in one_rank)
    narrow = openings(code_of(12, SearchSpace(name="x", bands=BandSpace(width=(0.1, 0.4)))), profile(12), 0, 12)
    assert all(opening.proposed_by != "low rank" for opening in narrow)


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_small_decoders_have_the_baselines_that_differ(layers: int) -> None:
    opened = openings(code_of(layers), profile(layers), 0, 30)
    bands = {each.role: each.candidate.bands[0] for each in opened if each.role.is_baseline}
    assert bands[Role.FULL_DEPTH] == Band.full(layers)
    assert all(band.width < layers for role, band in bands.items() if role is not Role.FULL_DEPTH)


class OnlyTheRate(Surface):
    """All layers at the middle rank are best, at a rate that no baseline is opened with."""

    def end_loss(self, candidate: Candidate) -> float:
        away = math.log10(candidate.learning_rate / 2.2e-3) ** 2
        return 0.2 + 0.05 * (LAYERS - len(candidate.layers)) + 0.1 * (candidate.rank != 16) + 0.3 * away


ATTENTION_ONLY = LAYOUT.model_copy(update={"linears": LAYOUT.linears[:2]})


@pytest.mark.parametrize(
    ("layout", "targets"), [(ATTENTION_ONLY, ("attention",)), (LAYOUT, ("attention+mlp",)), (LAYOUT, ("mlp", "all"))]
)
def test_baselines_are_in_a_space_that_calls_every_module_by_another_name(
    layout: Layout, targets: tuple[str, ...]
) -> None:
    """As on a mixture of experts, where `attention` and `all` are the same adapter: it would compete with itself."""
    code = CandidateCode(SearchSpace(name="x", targets=targets), layout, RATES)
    opened = openings(code, profile(LAYERS), 0, 40)
    assert all(code.encode(each.candidate) is not None for each in opened if each.role.is_baseline)
    assert {layout.targets(each.candidate.targets) for each in opened} == {layout.linears}
    params = code.encode(opened[0].candidate) or {}
    assert role_of(code, code.decode(params | {"rate": 2.2e-3})) is Role.FULL_DEPTH


def test_full_depth_at_one_more_rate_is_the_baseline_whoever_proposes_it() -> None:
    """As a candidate of the search it was declared to beat full depth."""
    code = code_of(LAYERS)
    full = Candidate.full_depth(LAYERS, rank=16, alpha=32, learning_rate=2.2e-3)
    assert role_of(code, full) is Role.FULL_DEPTH
    for other in ({"rank": 4}, {"alpha": 16.0}, {"targets": ("mlp",)}, {"bands": (Band(start=0, stop=LAYERS - 1),)}):
        assert role_of(code, full.model_copy(update=other)) is Role.SEARCHED
    proposers = set()
    for seed in range(3):
        results = planted_search(OnlyTheRate(), seed, 60)
        alike = [each for each in results if each.candidate.model_copy(update={"learning_rate": 2.2e-3}) == full]
        proposers |= {each.proposed_by for each in alike}
        assert {each.role for each in alike} == {Role.FULL_DEPTH}
        best = min(alike, key=lambda each: (-each.steps, each.points[-1].loss))
        assert pick_finalists(results, LAYERS, 4)[0].candidate == best.candidate
    assert proposers == {"baseline", "sampler"}
