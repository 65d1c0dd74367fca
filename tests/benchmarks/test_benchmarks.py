"""The benchmarks themselves: what they measure on, what they compare, and the line they print."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandsearch.demo.tasks import COUNT
from bandsearch.engine.engine import Engine
from bandsearch.values.evaluation import Interval
from bandsearch.values.statistics import paired_bootstrap
from benchmarks import processes
from benchmarks.ablations import pays_after, steps_to_win_back
from benchmarks.benchmark import run
from benchmarks.candidates import FROZEN, alike, frozen_candidates
from benchmarks.costs import PEAKS, Volume, peak_flops
from benchmarks.equal import Round, Rounding, check, deviation
from benchmarks.fits import power_law
from benchmarks.job import Answer, Job, Trained
from benchmarks.ours import OurTiming
from benchmarks.processes import Timing, run_naive, run_strong
from benchmarks.scale import BENCH, FULL, GPU, GPU_QUICK, QUICK, SEVEN_B_SHAPE, Scale, Study
from benchmarks.screening import Screening, _difference
from benchmarks.spread import Spread, repeats
from benchmarks.table import _screening
from benchmarks.workload import Workload


def test_the_candidates_are_stratified() -> None:
    starts, widths, ranks, targets, _ = (list(column) for column in zip(*FROZEN, strict=True))
    assert len(FROZEN) >= 24
    assert set(Counter(starts).values()) == set(Counter(ranks).values()) == {6}
    assert set(Counter(widths).values()) == set(Counter(targets).values()) == {8}
    assert set(Counter(zip(starts, widths, strict=True)).values()) == {2}
    for begin in range(0, 24, 4):
        assert len(set(starts[begin : begin + 4])) == 4


@pytest.mark.parametrize("layers", [4, 10, 16, 28])
def test_candidates_fit_every_depth_and_are_all_different(layers: int) -> None:
    candidates = frozen_candidates(layers)
    assert len({candidate.identity for candidate in candidates}) == len(FROZEN)
    assert all(candidate.bands[-1].stop <= layers for candidate in candidates)
    same = alike(layers // 2, layers, 30)
    assert len({candidate.identity for candidate in same}) == 30
    assert {candidate.bands for candidate in same} == {same[0].bands}


def test_a_fit_recovers_a_planted_exponent() -> None:
    xs = [1, 2, 4, 8]
    fit = power_law(xs, [7.0 * x**-0.75 for x in xs])
    assert (fit.factor, fit.exponent, fit.worst) == pytest.approx((7.0, -0.75, 0.0))
    assert power_law(xs, [7.0, 7.0, 7.0, 14.0]).worst > 0.1


def test_the_cache_pays_once_it_stays_ahead() -> None:
    assert pays_after([9, 1, 1, 1, 1], [3, 3, 3, 3, 3]) == 4
    assert pays_after([1, 1], [2, 2]) == 1
    assert pays_after([9, 9], [1, 1]) is None


def test_what_a_start_takes_is_won_back_by_shorter_steps_alone() -> None:
    assert steps_to_win_back(30.0, 0.5) == 60
    assert steps_to_win_back(30.0, 0.0) is None
    assert steps_to_win_back(30.0, -0.5) is None
    assert steps_to_win_back(-1.0, 0.5) == 0


def test_operations_of_a_seven_b_model_are_those_of_the_arithmetic() -> None:
    shape = SEVEN_B_SHAPE
    attention = 2 * shape.width**2 + 2 * shape.width * shape.width * shape.key_heads // shape.heads
    volume = Volume(
        layer_parameters=attention + 3 * shape.width * shape.inner,
        layers=shape.layers,
        head_parameters=shape.width * shape.vocabulary,
        trained_tokens=10,
        trained_positions=10,
        read_tokens=0,
        read_positions=0,
        distinct_tokens=5,
    )
    assert volume.full_depth_flops_per_token == pytest.approx(28.3e9, rel=0.01)
    full, late = frozen_candidates(28)[7], frozen_candidates(28)[12]
    assert volume.plain_flops(full) == pytest.approx(10 * volume.full_depth_flops_per_token)
    assert 0.5 < volume.plain_flops(late) / volume.plain_flops(full) < 0.75
    assert volume.least_step_flops(full) + volume.least_reading_flops(full) == volume.plain_flops(full)
    # Without what is cached and with a tenth of the logits.
    sparse = volume.model_copy(update={"trained_positions": 1})
    above = 1 - late.layers[0] / 28
    expected = 40 * above * 28 * volume.layer_parameters + 4 * volume.head_parameters
    assert sparse.least_step_flops(late) + sparse.least_reading_flops(late) == pytest.approx(expected)
    assert volume.prefix_flops([full, late]) == pytest.approx(2 * 5 * late.layers[0] * volume.layer_parameters)


def test_peaks_are_a_data_sheets_or_measured(workload: Workload) -> None:
    layout, cores = workload.summary.layout, workload.inventory
    assert peak_flops(cores.model_copy(update={"gpus": ("NVIDIA H200",)}), layout) == PEAKS["H200"]
    assert peak_flops(cores.model_copy(update={"gpus": ("another",)}), layout) is None
    measured = peak_flops(cores.model_copy(update={"gpus": (), "cores": 1}), layout)
    assert measured is not None
    assert measured > 1e7


def test_lengths_vary_and_a_quarter_is_learned(workload: Workload) -> None:
    assert len(set(workload.lengths)) > 10
    learned = sum(sum(example.supervised) for example in workload.dataset.train)
    assert 0.2 < learned / sum(workload.lengths) < 0.35


@pytest.mark.parametrize("study", [QUICK, FULL, GPU, GPU_QUICK], ids=lambda study: study.name)
def test_every_scale_has_rows_for_its_steps(study: Study) -> None:
    for scale in filter(None, (study.main, *study.others, study.ablated)):
        assert scale.rungs == tuple(sorted(set(scale.rungs)))
        assert scale.candidates >= max(scale.naive_trials, scale.strong_trials)
        assert 0.1 * (COUNT if scale.task else scale.rows) >= scale.validation_examples
    assert study.main.candidates >= 24


@pytest.mark.parametrize("study", [QUICK, FULL], ids=lambda study: study.name)
def test_a_median_is_of_three_naive_trainings(study: Study) -> None:
    for scale in (study.main, *study.others):
        assert scale.rounds * (scale.naive_trials + 1) >= 3


@pytest.mark.parametrize("study", [FULL, GPU], ids=lambda study: study.name)
def test_what_the_prefix_cache_keeps_is_met_again_where_it_is_measured(study: Study) -> None:
    scale = study.ablated
    assert scale is not None
    assert scale.shape is not None
    starts = Counter(candidate.layers[0] for candidate in frozen_candidates(scale.shape.layers, scale.candidates))
    assert scale.candidates >= 12
    assert min(starts.values()) >= 3
    assert scale.steps * scale.batch_size >= 2 * 0.8 * scale.rows


@pytest.fixture(scope="module")
def strong(workload: Workload) -> Timing:
    return run_strong(workload, workload.candidates[:1], 1)


def test_arms_train_the_same_steps(workload: Workload, strong: Timing) -> None:
    candidates = workload.candidates[:1]
    naive = run_naive(workload, candidates, 1)
    engine = Engine.load(workload.setups(workload.folder / "cache")[0])
    session = engine.admit(candidates[0], workload.proxy)
    readings = [engine.advance(session, steps).loss for steps in workload.scale.rungs]
    ours = strong.trials[0].model_copy(update={"train_losses": tuple(engine.train_losses(session))})
    assert deviation(naive.trials, [ours]) < 1e-5
    assert deviation(strong.trials, [ours]) < 1e-5
    assert strong.trials[0].validation_losses == pytest.approx(readings, abs=1e-5)
    assert len(naive.trials[0].validation_losses) == len(workload.scale.rungs)
    assert min(trial.change for trial in (*naive.trials, *strong.trials)) > 0


def test_rounding_is_told_from_a_fault_by_float64(workload: Workload) -> None:
    candidate = workload.candidates[0]
    faster = candidate.model_copy(update={"learning_rate": 1.01 * candidate.learning_rate})
    naive, wrong = run_naive(workload, [candidate, faster], 1, side_by_side=2).trials
    (exact,) = run_naive(workload, [candidate], 1, changes={"dtype": "float64"}).trials
    # The same in fp32 is the same to the last bit.
    assert naive.validation_losses != exact.validation_losses
    assert naive.validation_losses == pytest.approx(exact.validation_losses, abs=1e-5)
    assert Rounding.of(exact.train_losses, naive.train_losses, naive.train_losses).is_all
    assert not Rounding.of(exact.train_losses, naive.train_losses, wrong.train_losses).is_all


def test_what_is_amplified_is_no_fault_and_what_comes_before_it_is() -> None:
    exact, growing = [1.0] * 6, [1.0 + 1e-6 * 10**step for step in range(6)]
    assert Rounding.of(exact, growing, [2 - 2 * (loss - 0.5) for loss in growing]).is_all
    # As far off in the end, but at a time when the other was not.
    early = [1.0, 1.001, *growing[2:]]
    assert not Rounding.of(exact, growing, early).is_all


def test_passes_of_fewer_rows_add_up_to_the_same_steps(
    workload: Workload, strong: Timing, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, once = [], processes._run

    def small_memory(module: str, job: Job) -> Answer | None:
        seen.append((module.rpartition(".")[2], job.pass_rows))
        return once(module, job) if job.pass_rows < 4 else None

    monkeypatch.setattr(processes, "_run", small_memory)
    monkeypatch.setattr(processes, "_fitting", {})
    for arm in (run_naive, run_strong):
        assert deviation(arm(workload, workload.candidates[:1], 1).trials, strong.trials) < 1e-5
    assert seen == [("naive", 4), ("naive", 2), ("strong", 4), ("strong", 2)]


def test_what_was_not_measured_follows_from_its_operations(workload: Workload) -> None:
    candidates = workload.candidates
    volume = workload.volume(workload.proxy)
    measured = tuple(_trained(candidate, seconds=volume.plain_flops(candidate)) for candidate in candidates[:2])
    timing = Timing(starts=(4.0, 5.0, 60.0), trials=measured, peak_memory_bytes=0)
    flops = sum(map(volume.plain_flops, candidates))
    assert timing.seconds(workload, candidates, starts=2).median == pytest.approx(10.0 + flops)


def test_one_disturbed_trial_moves_no_ratio_and_is_told(workload: Workload) -> None:
    volume, (first, second, _) = workload.volume(workload.proxy), workload.candidates
    quiet = [_trained(candidate, seconds=volume.plain_flops(candidate)) for candidate in (first, second)]
    disturbed = _trained(first, seconds=5 * volume.plain_flops(first))
    timing = Timing(starts=(0.0,), trials=(*quiet, disturbed), peak_memory_bytes=0)
    found = timing.seconds(workload, workload.candidates, starts=0)
    expected = sum(map(volume.plain_flops, workload.candidates))
    assert (found.low, found.median, found.high) == pytest.approx((expected, expected, 5 * expected))
    again = repeats(timing.trials)
    assert again.high == pytest.approx(5)
    assert again.is_disturbed
    assert not repeats([quiet[0], quiet[0]]).is_disturbed


@given(st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=9), st.floats(1e-3, 1e3))
def test_a_spread_holds_its_median(values: list[float], by: float) -> None:
    spread = Spread.of(values).divided(by)
    assert spread.low <= spread.median <= spread.high
    assert spread.is_disturbed == (max(values) / by > 1.15 * (min(values) / by))


@pytest.mark.parametrize(("low", "missed"), [(-0.1, False), (0.01, True)])
def test_a_winner_behind_naives_is_marked(low: float, missed: bool) -> None:
    screening = Screening(
        naive=Spread.of([20.0]),
        trials=1,
        states={"complete": 1},
        mean_steps=1.0,
        ours_seconds=1.0,
        probe_seconds=1.0,
        naive_seconds=20.0,
        winner="ours",
        naive_winner="theirs",
        winner_test_loss=0.2,
        naive_winner_test_loss=0.1,
        base_test_loss=1.0,
        difference=Interval(mean=0.1, low=low, high=0.2),
    )
    assert screening.is_no_worse != missed
    rows = _screening([SimpleNamespace(scale=BENCH, screening=screening)])
    assert ("**missed**" in rows) == missed


@given(st.lists(st.floats(-0.5, 0.5), min_size=2, max_size=6), st.integers(0, 50))
def test_a_difference_that_seeds_turn_round_is_none(by_seed: list[float], seed: int) -> None:
    """Its interval is no narrower than that over seeds or that over questions."""
    numbers = np.random.default_rng(seed)
    theirs = [[(float(loss), 1) for loss in numbers.normal(1, 0.1, 40)] for _ in by_seed]
    ours = [[(loss + shift, tokens) for loss, tokens in losses] for losses, shift in zip(theirs, by_seed, strict=True)]
    found, over_seeds = _difference(ours, theirs, range(40)), paired_bootstrap(by_seed)
    assert found.mean == pytest.approx(over_seeds.mean)
    assert found.low <= over_seeds.low + 1e-9
    assert found.high >= over_seeds.high - 1e-9
    noisy = [[(loss + 0.1 * (-1) ** place, 1) for place, (loss, _) in enumerate(losses)] for losses in theirs]
    over_questions = _difference(noisy, theirs, range(40))
    assert over_questions.low < 0 < over_questions.high


def _trained(candidate: object, seconds: float = 1.0, change: float = 0.1) -> Trained:
    return Trained(candidate=candidate, seconds=seconds, train_losses=(1.0,), validation_losses=(0.5,), change=change)


def _round(**changed: dict[str, object]) -> Round:
    """Every arm trains one candidate from a base loss of 0.6 to 0.5, but for what is `changed` of an arm's trial."""
    trials = {
        arm: (_trained(frozen_candidates(4)[0]).model_copy(update=changed.get(arm, {})),)
        for arm in ("naive", "beside", "strong", "ours")
    }
    naive, beside, strong = (
        Timing(starts=(1.0,), trials=trials[arm], peak_memory_bytes=0) for arm in ("naive", "beside", "strong")
    )
    ours = OurTiming(
        start_seconds=1.0,
        total_seconds=2.0,
        trials=trials["ours"],
        base_loss=0.6,
        engines=1,
        packing=1,
        peak_memory_bytes=0,
    )
    return Round(naive, beside, strong, ours)


@pytest.mark.parametrize("arm", ["naive", "beside", "strong", "ours"])
def test_a_speed_up_of_adapters_that_do_not_change_is_none(arm: str) -> None:
    check([_round()])
    for change in (0.0, float("nan")):
        with pytest.raises(AssertionError, match="did not change"):
            check([_round(), _round(**{arm: {"change": change}})])


@pytest.mark.parametrize("loss", [0.6, float("nan")])
def test_a_speed_up_of_losses_that_do_not_fall_is_none(loss: float) -> None:
    with pytest.raises(AssertionError, match=r"not below the base's 0\.6000"):
        check([_round(), _round(ours={"validation_losses": (0.5, loss)})])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_study_writes_its_figures_and_ends_with_one_line(scale: Scale, tmp_path: Path) -> None:
    study = Study(name="tiny", main=scale)
    line = json.loads(run(study, "cpu", tmp_path))
    document = json.loads((tmp_path / "tiny.json").read_text())
    keys = {"a_naive", "a_naive_side_by_side", "a_strong", "b_naive", "b_workload", "b_winner_no_worse"}
    keys |= {"max_loss_deviation", "trials", "disturbed"}
    assert keys <= line.keys()
    assert keys <= document.keys()
    assert line["trials"] == document["trials"] == 3
    assert min(line["a_naive"], line["a_naive_side_by_side"], line["a_strong"], line["b_naive"]) > 0
    assert line["b_workload"] == "tiny"
    assert line["max_loss_deviation"] < 1e-4
    found = document["workloads"][0]
    assert sum(found["screening"]["states"].values()) >= 3
    equal = found["equal"]
    assert equal["steadiness"].keys() == {"naive", "strong", "ours"}
    assert 0 <= equal["rounding"]["naive"] < 1e-4
    assert 0 < equal["rounding"]["ours"] < 1e-4
    assert equal["rounding"]["is_all"]
    assert document["deviation_is_rounding"]
    assert sum(equal["breakdown"].values()) == pytest.approx(equal["ours_seconds"])
    table = (tmp_path / "tiny.md").read_text()
    assert "*unmeasured*" in table
    # A step of milliseconds is hardly ever steady; where one is not, the table says so.
    assert ("**warning**" in table) == bool(line["disturbed"])
