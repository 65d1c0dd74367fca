"""What a table holds."""

from __future__ import annotations

from planted import DESIGN, LAYERS

from bandsearch.values.candidate import Candidate
from benchmarks.bandbench.design import Design
from benchmarks.bandbench.entry import Entry, contiguous, scattered


def test_every_band_is_in_it_and_sets_of_equal_size() -> None:
    entries = DESIGN.entries(LAYERS)
    assert len(set(entries)) == len(entries) == 339
    bands = [entry for entry in entries if entry.is_band]
    assert len({entry.bands for entry in bands}) == LAYERS * (LAYERS + 1) // 2
    assert entries[: len(contiguous(LAYERS, 1, "all"))] == contiguous(LAYERS, *DESIGN.habit)
    others = [entry for entry in entries if not entry.is_band]
    assert {(entry.rank, entry.targets) for entry in others} == {DESIGN.habit}
    pairs = [entry for entry in others if entry.is_ends(LAYERS) and len(entry.layers) <= LAYERS // 2]
    assert {entry.layers for entry in pairs} >= {(0, 11), (0, 9, 10, 11), (0, 1, 2, 3, 4, 11)}
    assert len(pairs) == 15
    sets = [entry for entry in others if entry not in pairs]
    assert {len(entry.layers) for entry in sets} == set(DESIGN.set_widths)


def test_a_set_is_a_candidate_and_never_a_band() -> None:
    for entry in scattered(LAYERS, 6, 20, 8, "all"):
        candidate: Candidate = entry.candidate(0.01, 32.0)
        assert candidate.layers == entry.layers
        assert len(candidate.bands) > 1
    assert scattered(LAYERS, LAYERS, 4, 8, "all") == []
    assert len(scattered(3, 2, 4, 8, "all")) == 1


def test_full_depth_and_the_best_of_every_width_get_the_other_seeds() -> None:
    losses = {entry: float(entry.start) + 0.001 * entry.rank for entry in DESIGN.entries(LAYERS)}
    chosen = DESIGN.survivors(losses, LAYERS)
    by_width = {width: [each for each in chosen if len(each.layers) == width] for width in range(1, LAYERS + 1)}
    assert len(by_width[LAYERS]) == len(DESIGN.ranks) * len(DESIGN.targets)
    for width in range(1, LAYERS):
        best = min((entry for entry in losses if len(entry.layers) == width), key=lambda entry: losses[entry])
        assert len(by_width[width]) >= DESIGN.survivors_per_width
        assert best in by_width[width]
    drawn = [entry for entry in losses if entry.is_drawn]
    assert len(losses) / 16 < len(drawn) < len(losses) / 4
    assert set(drawn) <= set(chosen)
    assert len(chosen) <= 11 * DESIGN.survivors_per_width + 4 + DESIGN.survivors_beside + len(drawn)


def test_seeds_of_proxies_and_full_trainings_are_those_of_a_run() -> None:
    assert (DESIGN.proxy(2).seed, DESIGN.proxy(2).steps) == (2, DESIGN.rungs[-1])
    assert DESIGN.full(0).learning_rate_factor(DESIGN.full_steps - 1) < 0.02
    assert DESIGN.proxy(0).learning_rate_factor(DESIGN.rungs[0]) == 1.0
    assert DESIGN.proxy(0).learning_rate_factor(DESIGN.rungs[-1] - 1) < 0.05
    assert Design(ranks=(8,), targets=("mlp",)).habit == (8, "mlp")


def test_consecutive_layers_are_one_band() -> None:
    assert Entry.of_layers([5, 3, 4, 9], 8, "all").bands == ((3, 6), (9, 10))
