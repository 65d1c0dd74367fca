from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import assume, given, reject
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution, IntDistribution
from surface import LAYOUT, RATES

from bandsearch.search.candidates import CandidateCode, rate_bounds
from bandsearch.search.proposer import Sampler, propose_params
from bandsearch.values.band import Band
from bandsearch.values.candidate import Candidate, Init, Method
from bandsearch.values.errors import SpaceError
from bandsearch.values.layout import Layout
from bandsearch.values.profile import RateRange
from bandsearch.values.space import BandSpace, RateSpace, SearchSpace


def layout_of(layers: int) -> Layout:
    return LAYOUT.model_copy(update={"layer_count": layers})


def ranges(lowest: float, highest: float) -> st.SearchStrategy[tuple[float, float]]:
    fractions = st.floats(lowest, highest).map(lambda x: round(x, 3))
    return st.tuples(fractions, fractions).map(lambda pair: (min(pair), max(pair)))


def band_spaces() -> st.SearchStrategy[BandSpace]:
    @st.composite
    def drawn(draw: st.DrawFn) -> BandSpace:
        count, start = draw(st.integers(1, 3)), draw(ranges(0, 0.9))
        width = draw(ranges(0.01, max(0.01, round((1 - start[0]) / count - 0.001, 3))))
        return BandSpace(count=count, split=draw(st.booleans()), start=start, width=width, snap=draw(st.integers(1, 4)))

    return drawn()


@st.composite
def codes(draw: st.DrawFn) -> CandidateCode:
    inits = tuple(draw(st.lists(st.sampled_from(Init), min_size=1, max_size=3, unique=True)))
    ranks = [2, 4, 8, 16, 64] if Init.ORTHOGONAL in inits else [1, 2, 4, 8, 16, 64]
    space = SearchSpace(
        name="drawn",
        bands=draw(band_spaces()),
        ranks=tuple(draw(st.lists(st.sampled_from(ranks), min_size=1, max_size=4))),
        alpha=draw(st.sampled_from([16.0, "1r", "2r"])),
        targets=tuple(draw(st.lists(st.sampled_from(["attention", "mlp", "all", "q_proj+v_proj"]), min_size=1))),
        methods=(Method.LORA, Method.RSLORA),
        inits=inits,
    )
    layers = draw(st.integers(12, 40))
    try:
        return CandidateCode(space, layout_of(layers), RATES)
    except SpaceError:
        reject()


def test_more_bands_than_layers_are_refused() -> None:
    with pytest.raises(SpaceError, match="3 bands do not fit into the 2 layers"):
        CandidateCode(SearchSpace(name="x", bands=BandSpace(count=3)), layout_of(2), RATES)


@st.composite
def points(draw: st.DrawFn) -> tuple[CandidateCode, dict[str, object]]:
    code = draw(codes())
    params: dict[str, object] = {}
    for name, distribution in code.distributions.items():
        if isinstance(distribution, IntDistribution):
            params[name] = draw(st.integers(distribution.low, distribution.high))
        elif isinstance(distribution, FloatDistribution):
            params[name] = draw(st.floats(distribution.low, distribution.high))
        else:
            params[name] = draw(st.sampled_from(distribution.choices))
    return code, params


@given(points())
def test_every_point_is_a_candidate_of_the_model_and_the_space(point: tuple[CandidateCode, dict[str, object]]) -> None:
    code, params = point
    candidate = code.decode(params)
    bands = candidate.bands
    assert 1 <= len(bands) <= (2 if code.splits else code.space.bands.count)
    assert bands[-1].stop <= code.layer_count
    assert all(left.stop < right.start for left, right in itertools.pairwise(bands))
    snap = min(code.space.bands.snap, code.layer_count)
    assert all(band.start % snap == 0 for band in bands)
    assert all(band.stop % snap == 0 or band.stop == code.layer_count for band in bands)
    lowest, highest = (share * code.layer_count for share in code.space.bands.start)
    assert lowest - snap <= bands[0].start <= highest + snap / 2
    assert candidate.rank in code.space.ranks
    assert code.rates[0] <= candidate.learning_rate <= code.rates[1]


@given(points())
def test_a_candidate_of_the_space_can_be_written_as_a_point_again(
    point: tuple[CandidateCode, dict[str, object]],
) -> None:
    code, params = point
    candidate = code.decode(params)
    again = code.encode(candidate)
    if len(candidate.bands) < code.space.bands.count:
        assert again is None
    elif code.space.bands.count == 1:
        assert again is not None
    if again is not None:
        assert set(again) == set(code.distributions)
        assert code.decode(again) == candidate
    drawn = code.drawn(candidate, random.Random(0))
    assert (drawn is None) == (again is None)
    if drawn is not None:
        assert code.decode(drawn) == candidate


def test_what_does_not_matter_is_drawn_from_all_of_its_range() -> None:
    code = CandidateCode(SearchSpace(name="free"), layout_of(12), RATES)
    whole = Candidate(bands=(Band.full(12),), rank=8, alpha=32, targets=("all",), learning_rate=1e-3)
    drawn = [code.drawn(whole, random.Random(seed)) for seed in range(50)]
    for name, highest in (("start", 1.0), ("part", 1.0), ("gap", 0.5)):
        values = [params[name] for params in drawn if params is not None]
        assert min(values) < 0.1 * highest
        assert 0.9 * highest < max(values) <= highest


@given(st.integers(2, 48), st.integers(1, 48), st.data())
def test_with_the_whole_depth_free_every_band_of_a_width_is_reached(
    layers: int, width: int, data: st.DataObject
) -> None:
    width = min(width, layers)
    code = CandidateCode(SearchSpace(name="free", bands=BandSpace(width=(0.01, 1.0))), layout_of(layers), RATES)
    start = data.draw(st.integers(0, layers - width))
    wanted = Candidate(
        bands=(Band(start=start, stop=start + width),), rank=8, alpha=32, targets=("all",), learning_rate=1e-3
    )
    params = code.encode(wanted)
    assert params is not None
    assert params["width"] == width
    assert code.decode(params) == wanted


@given(st.integers(3, 48), st.data())
def test_every_band_in_two_pieces_is_reached(layers: int, data: st.DataObject) -> None:
    space = SearchSpace(name="split", bands=BandSpace(split=True, width=(0.01, 1.0)))
    code = CandidateCode(space, layout_of(layers), RATES)
    places = data.draw(st.lists(st.integers(0, layers), min_size=4, max_size=4, unique=True).map(sorted))
    bands = (Band(start=places[0], stop=places[1]), Band(start=places[2], stop=places[3]))
    wanted = Candidate(bands=bands, rank=8, alpha=32, targets=("all",), learning_rate=1e-3)
    params = code.encode(wanted)
    assert params is not None
    assert params["width"] == len(wanted.layers)
    assert code.decode(params) == wanted


def test_half_of_a_split_space_is_whole_and_gaps_and_parts_are_equally_likely() -> None:
    code = CandidateCode(SearchSpace(name="split", bands=BandSpace(split=True)), layout_of(10), RATES)
    common = {"rank_position": 0, "rate": 1e-3, "targets": "all", "width": 4, "start": 0.0}

    def bands(gap: float, part: float) -> tuple[Band, ...]:
        return code.decode(common | {"gap": gap, "part": part}).bands

    drawn = [bands((index + 0.5) / 1200, 0.0) for index in range(1200)]
    assert sum(len(each) == 1 for each in drawn) == 600
    gaps = [each[1].start - each[0].stop for each in drawn if len(each) == 2]
    assert [gaps.count(gap) for gap in range(1, 7)] == [100] * 6
    firsts = [bands(1.0, (index + 0.5) / 300)[0].width for index in range(300)]
    assert [firsts.count(first) for first in (1, 2, 3)] == [100] * 3


def test_start_is_uniform_over_the_allowed_starts() -> None:
    code = CandidateCode(SearchSpace(name="free", bands=BandSpace(split=False)), layout_of(10), RATES)
    common = {"rank_position": 0, "rate": 1e-3, "targets": "all", "width": 4}
    starts = [code.decode(common | {"start": index / 700}).bands[0].start for index in range(701)]
    assert [starts.count(start) for start in range(7)] == [100] * 6 + [101]


def test_what_offers_no_choice_is_no_parameter() -> None:
    space = SearchSpace(name="narrow", ranks=(8,), targets=("all",), bands=BandSpace(split=False, width=(0.5, 0.5)))
    assert set(CandidateCode(space, layout_of(10), RATES).distributions) == {"start", "rate"}


def test_ranges_do_not_depend_on_other_parameters() -> None:
    code = CandidateCode(SearchSpace(name="free"), layout_of(10), RATES)
    assert code.distributions["start"] == FloatDistribution(0.0, 1.0)
    assert code.distributions["width"] == IntDistribution(1, 10)


def test_a_space_between_two_depths_keeps_to_them() -> None:
    space = SearchSpace(name="middle", bands=BandSpace(split=False, start=(0.2, 0.4), width=(0.5, 0.6)))
    code = CandidateCode(space, layout_of(10), RATES)
    common = {"rank_position": 0, "rate": 1e-3, "targets": "all"}
    bands = {
        str(code.decode(common | {"start": start / 10, "width": width}).bands[0])
        for start in range(11)
        for width in (5, 6)
    }
    assert bands == {"2-6", "3-7", "4-8", "2-7", "3-8", "4-9"}


def test_a_baseline_outside_the_space_has_no_point() -> None:
    space = SearchSpace(
        name="small", ranks=(4, 8), bands=BandSpace(split=False, width=(0.1, 0.5)), targets=("attention",)
    )
    code = CandidateCode(space, layout_of(10), RATES)
    full = Candidate(bands=(Band.full(10),), rank=8, alpha=32, targets=("all",), learning_rate=1e-3)
    assert code.encode(full) is None
    assert code.encode(full.model_copy(update={"bands": (Band(start=0, stop=3),)})) is None
    inside = full.model_copy(update={"bands": (Band(start=0, stop=3),), "targets": ("attention",)})
    assert code.encode(inside) == {"start": pytest.approx(0.5 / 8), "width": 3, "rank_position": 1, "rate": 1e-3}


@pytest.mark.parametrize(("rule", "alpha"), [(32.0, 32.0), ("1r", 8.0), ("2r", 16.0), ("0.5r", 4.0)])
def test_alpha_rules(rule: float | str, alpha: float) -> None:
    assert SearchSpace(name="x", alpha=rule).alpha_at(8) == alpha


def test_groups_the_decoder_lacks_are_left_out_and_equal_targets_are_one() -> None:
    attention_only = LAYOUT.model_copy(update={"linears": LAYOUT.linears[:2]})
    code = CandidateCode(SearchSpace(name="x", targets=("attention", "mlp", "all")), attention_only, RATES)
    assert code.targets == ("attention",)
    with pytest.raises(SpaceError, match="mlp"):
        CandidateCode(SearchSpace(name="x", targets=("mlp",)), attention_only, RATES)
    with pytest.raises(SpaceError, match="gate_proj"):
        CandidateCode(SearchSpace(name="x", targets=("gate_proj",)), attention_only, RATES)


def test_a_band_whose_layers_have_none_of_the_targets_is_never_proposed() -> None:
    attention, *others = LAYOUT.linears
    some = attention.model_copy(update={"layers": (3,)})
    layout = LAYOUT.model_copy(update={"linears": (some, *others)})
    space = SearchSpace(name="x", targets=(attention.leaf,), ranks=(8,), bands=BandSpace(split=False))
    code = CandidateCode(space, layout, RATES)
    below = Candidate(bands=(Band(start=0, stop=3),), rank=8, alpha=32, targets=(attention.leaf,), learning_rate=1e-3)
    assert code.encode(below) is None
    assert code.encode(below.model_copy(update={"bands": (Band(start=0, stop=4),)})) is not None
    proposed = [propose_params(code, (), (), seed=0, number=n, sampler=Sampler.RANDOM) for n in range(20)]
    assert all(3 in code.decode(params).layers for params in proposed if params is not None)
    assert any(proposed)


def test_the_space_overrules_the_probe_on_learning_rates() -> None:
    def rates(**limits: float) -> tuple[float, float]:
        return CandidateCode(SearchSpace(name="x", learning_rate=RateSpace(**limits)), LAYOUT, RATES).rates

    assert rates() == (1e-4, 1e-2)
    assert rates(low=1e-3) == (1e-3, 1e-2)
    assert rates(low=1e-5, high=2e-5) == (1e-5, 2e-5)
    assert rates(high=1e-5) == (1e-5, 1e-5)
    assert rates(low=1e-1) == (1e-1, 1e-1)


_rates = st.floats(1e-7, 1.0)


@given(_rates | st.none(), _rates | st.none(), st.lists(_rates, min_size=3, max_size=3).map(sorted))
def test_a_given_bound_holds_wherever_the_probe_s_span_lies(
    low: float | None, high: float | None, span: list[float]
) -> None:
    assume(low is None or high is None or low <= high)
    probed = RateRange(low=span[0], best=span[1], high=span[2])
    first, last = rate_bounds(SearchSpace(name="x", learning_rate=RateSpace(low=low, high=high)), probed)
    assert first <= last
    assert first == low if low is not None else first <= max(span[0], high or 0)
    assert last == high if high is not None else last >= min(span[2], low or 1)
