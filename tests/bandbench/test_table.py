"""What a table says about what was planted, and what replays draw from it."""

from __future__ import annotations

import random

import numpy as np
import pytest
from planted import BEST_RATE, DESIGN, LAYERS, PLANTED, flat, header, planted, profile, rows, table

from bandsearch.values.band import Band
from benchmarks.bandbench.clock import Clock
from benchmarks.bandbench.entry import Entry
from benchmarks.bandbench.table import Table, table_of
from benchmarks.bandbench.world import World

NOISE = 0.01


@pytest.fixture(scope="module")
def made() -> Table:
    return table(noise=NOISE)


def test_the_planted_band_is_the_optimum(made: Table) -> None:
    best = made.options[made.optimum]
    assert best.candidate.learning_rate == BEST_RATE
    least = planted(Entry(bands=(PLANTED,), rank=4, targets="all"), BEST_RATE)
    assert planted(best.entry, BEST_RATE) <= least + 2 * NOISE
    assert best.seeds == DESIGN.seeds
    assert made.regret(made.optimum) == 0
    truth = planted(made.options[made.full_depth].entry, BEST_RATE) - least
    assert made.regret(made.full_depth) == pytest.approx(truth, abs=3 * NOISE)


def test_noise_is_that_of_a_training_without_what_a_seed_does_to_all(made: Table) -> None:
    assert made.noise == pytest.approx(NOISE * (1 + 1 / 9) ** 0.5, rel=0.25)
    assert np.allclose(made.effects.mean(axis=0), 0)


def test_a_rate_that_lost_keeps_its_distance_and_is_never_the_optimum(made: Table) -> None:
    entry = Entry(bands=(PLANTED,), rank=4, targets="all")
    by_rate = {
        option.candidate.learning_rate: made.full[i] for i, option in enumerate(made.options) if option.entry == entry
    }
    assert len(by_rate) == len(DESIGN.rate_factors)
    assert min(by_rate, key=lambda rate: by_rate[rate]) == BEST_RATE


def test_where_no_band_is_better_the_best_is_no_better_either() -> None:
    made = table(flat, noise=NOISE)
    sure = [made.full[index] for index in made.own if made.options[index].seeds == DESIGN.seeds]
    assert np.std(sure) < 1.5 * NOISE
    assert made.regret(made.full_depth) < 2.5 * NOISE


def test_every_entry_has_one_best_rate(made: Table) -> None:
    own = [made.options[index] for index in made.own]
    assert len(own) == len({option.entry for option in own}) == len(DESIGN.entries(LAYERS))
    assert made.optimum in made.own


def test_half_a_table_is_read_and_none_without_full_depth() -> None:
    lines = rows(planted)
    some = [row for row in lines if row.seed == 0 and row.entry.start < 3]
    assert table_of(header(), profile(), some) is not None
    assert table_of(header(), profile(), [row for row in lines if row.entry.start > 0]) is None
    assert table_of(header(), profile(), []) is None


def test_on_one_seed_nothing_is_known_of_noise() -> None:
    made = table_of(header(), profile(), [row for row in rows(planted) if row.seed == 0])
    assert made is not None
    assert made.noise == 0
    candidate = made.options[made.optimum].candidate
    assert World(made, 0).loss(candidate, -1, 0) == World(made, 1).loss(candidate, -1, 5) == made.full[made.optimum]


def test_a_rate_that_diverged_is_infinitely_bad() -> None:
    worst = max(header().rates)
    lines = [row.model_copy(update={"readings": ()}) if row.rate == worst else row for row in rows(planted)]
    made = table_of(header(), profile(), lines)
    assert made is not None
    diverged = [i for i, option in enumerate(made.options) if option.candidate.learning_rate == worst]
    assert diverged
    assert np.isinf(made.full[diverged]).all()
    assert World(made, 0).loss(made.options[diverged[0]].candidate, 0, 0) == float("inf")


def test_the_nearest_option_has_the_same_layers_then_targets_then_rank_then_rate(made: Table) -> None:
    world = World(made, 0)
    for index in (0, 100, 500, len(made.options) - 1):
        assert world.nearest(made.options[index].candidate) == index
    wanted = made.options[0].candidate.model_copy(
        update={"bands": (Band(start=2, stop=7),), "rank": 13, "learning_rate": BEST_RATE * 1.2}
    )
    found = made.options[world.nearest(wanted)].candidate
    assert (found.bands, found.targets, found.rank) == (wanted.bands, wanted.targets, 16)
    assert found.learning_rate == BEST_RATE


def test_draws_differ_by_replay_and_seed_and_spread_as_the_noise(made: Table) -> None:
    candidate = made.options[made.optimum].candidate
    assert World(made, 3).loss(candidate, -1, 0) == World(made, 3).loss(candidate, -1, 0)
    assert World(made, 3).loss(candidate, -1, 0) != World(made, 3).loss(candidate, -1, 1)
    spread = (made.noise**2 + made.effects[:, -1].var()) ** 0.5
    spreads = []
    for index in made.own[::20]:
        each = made.options[index].candidate
        drawn = [World(made, replay).loss(each, -1, seed) for replay in range(40) for seed in range(5)]
        assert np.mean(drawn) == pytest.approx(made.full[index], abs=0.5 * spread)
        spreads.append(np.std(drawn))
    assert np.mean(spreads) == pytest.approx(spread, rel=0.15)


def test_what_breaks_off_now_and_then_lends_nobody_luck() -> None:
    """At the highest rate every third training ends a nat higher. Told from a mean, those that do not break off would
    be a third of a nat lower than any that was trained."""
    design = DESIGN.model_copy(update={"full_rates": 3})
    high = design.rates(BEST_RATE)[-1]

    def breaks(entry: Entry, rate: float, seed: int) -> bool:
        return rate == high and random.Random(f"{entry} {seed}").random() < 1 / 3

    made = table_of(header(design=design), profile(), rows(flat, NOISE, design=design, breaks=breaks))
    assert made is not None
    usual = flat(made.options[0].entry, high)
    shares = []
    for index, option in enumerate(made.options):
        if option.candidate.learning_rate == high and option.seeds and made.centres[index, -1] < usual + 0.5:
            drawn = [World(made, replay).loss(option.candidate, -1, seed) for replay in range(10) for seed in range(3)]
            assert min(drawn) > usual - 6 * NOISE
            assert np.mean(drawn) == pytest.approx(made.full[index], abs=0.3)
            shares.append(np.mean(np.array(drawn) > usual + 0.5))
    assert 0.15 < np.mean(shares) < 0.4
    # Where nothing breaks off, nothing does.
    low = [index for index, option in enumerate(made.options) if option.candidate.learning_rate == BEST_RATE]
    assert max(np.max(np.abs(made.noise_like(index)[:, -1])) for index in low) < 6 * NOISE


def test_a_training_that_broke_off_before_its_end_is_infinitely_bad() -> None:
    worst = max(DESIGN.rates(BEST_RATE))
    lines = [
        row.model_copy(update={"readings": ()}) if row.rate == worst and row.kind == "full" else row
        for row in rows(planted, design=DESIGN.model_copy(update={"full_rates": 3}))
    ]
    made = table_of(header(), profile(), lines)
    assert made is not None
    for index, option in enumerate(made.options):
        if option.candidate.learning_rate == worst and DESIGN.is_habit(option.entry):
            assert np.isinf(made.full[index])


def test_a_rate_not_trained_in_full_ends_as_it_does_on_the_same_layers_at_the_habits_rank() -> None:
    """The highest rate looks as good as any at the first rung, and breaks off later on."""
    design = DESIGN.model_copy(update={"full_rates": 3})
    high = design.rates(BEST_RATE)[-1]
    made = table_of(
        header(design=design),
        profile(),
        rows(planted, NOISE, design=design, breaks=lambda entry, rate, seed: rate == high),
    )
    assert made is not None
    filled = [index for index, option in enumerate(made.options) if option.candidate.learning_rate == high]
    filled = [index for index in filled if made.options[index].seeds == 0]
    assert filled
    for index in filled:
        assert made.full[index] == pytest.approx(planted(made.options[index].entry, high) + 1, abs=10 * NOISE)


def test_in_a_null_world_nothing_is_better_than_full_depth(made: Table) -> None:
    world, full = World(made, 0, null=True), made.options[made.full_depth].candidate
    mean = np.mean([world.loss(made.options[made.optimum].candidate, -1, seed) for seed in range(200)])
    assert mean == pytest.approx(np.mean([world.loss(full, -1, seed) for seed in range(200)]), abs=0.3 * NOISE)


def test_bands_that_start_later_cost_less(made: Table) -> None:
    last = {option.entry.start: made.seconds(place, 1) for place, option in enumerate(made.options)}
    seconds = [last[start] for start in range(LAYERS)]
    assert seconds == sorted(seconds, reverse=True)
    assert made.exhaustive_seconds > 1000


def test_a_clock_tells_what_an_undisturbed_machine_takes(made: Table) -> None:
    """A third of the trainings had to share the machine, all of those at one start among them."""
    dice, layout = random.Random(3), made.header.layout
    true = Clock(layout, step=0.004, layer=0.002, module=0.0001)
    entries = [option.entry for option in made.options for _ in range(3)]
    shared = [entry.start == 2 or dice.random() < 0.25 for entry in entries]
    slower = [dice.uniform(1.5, 3) if each else dice.uniform(1, 1.05) for each in shared]
    seconds = [true.seconds(entry) * factor for entry, factor in zip(entries, slower, strict=True)]
    found = Clock.of(layout, entries, seconds)
    for entry in set(entries):
        assert found.seconds(entry) == pytest.approx(true.seconds(entry), rel=0.05)
