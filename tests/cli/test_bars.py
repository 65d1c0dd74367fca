"""A profile in the terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from bandsearch.cli.bars import bar, draw
from bandsearch.probe.proposals import propose
from bandsearch.probe.scores import layer_scores
from bandsearch.values.profile import LayerViews, ModuleSensitivity, RateRange, SensitivityProfile


def profile(layers: int, *, views: bool = True) -> SensitivityProfile:
    scores = layer_scores([[(7 * layer) % layers for layer in range(layers)]])
    return SensitivityProfile(
        model="llama",
        layer_count=layers,
        modules=tuple(ModuleSensitivity(layer=layer, module="q", raw=1, normalised=0.5) for layer in range(layers)),
        views=tuple(
            LayerViews(
                layer=layer,
                entropy_base=0.51,
                entropy_tuned=0.52,
                effective_rank_base=20,
                effective_rank_tuned=21,
                cka=0.987,
                cosine=0.9,
                curvature_base=0.61,
                curvature_tuned=0.62,
                relative_change=0.034,
            )
            for layer in range(layers if views else 0)
        ),
        layer_scores=scores,
        rate_range=RateRange(low=1e-4, best=1e-3, high=2e-3),
        proposals=propose(scores, {}),
        seconds=12,
    )


def shown(of: SensitivityProfile, *, width: int = 80, terminal: bool = False) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=terminal)
    console.print(draw(of))
    return console.file.getvalue()


@pytest.mark.parametrize("layers", [1, 2, 28, 126])
def test_everything_fits_eighty_columns_without_a_terminal(layers: int) -> None:
    of = profile(layers)
    text = shown(of)
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    rows = [line for line in text.splitlines() if "0.51→0.52" in line]
    assert [int(row.split()[0]) for row in rows] == list(range(layers))
    assert all("0.987" in row and "3.4%" in row and "0.61→0.62" in row for row in rows)
    assert "1.0e-04 to 2.0e-03, best 1.0e-03" in text
    for proposal in of.proposals:
        assert str(proposal.band) in text


def test_the_longest_bar_is_the_most_sensitive_layer() -> None:
    of = profile(12)
    rows = [line for line in shown(of).splitlines() if "0.51→0.52" in line]
    lengths = [row.count("█") + 0.5 * row.count("▌") for row in rows]
    assert lengths.index(max(lengths)) == of.ranking[0]
    assert lengths.index(min(lengths)) == of.ranking[-1]


def test_colours_are_for_terminals() -> None:
    assert "\x1b[" in shown(profile(4), terminal=True)


def test_a_profile_without_views_is_drawn() -> None:
    assert "–" in shown(profile(4, views=False))


def test_bars_scale_to_the_largest_and_only_nothing_is_empty() -> None:
    assert bar(0.2, 0.2, 10) == "█" * 10
    assert bar(0.1, 0.2, 10) == "█" * 5
    assert bar(0.05, 0.2, 10) == "██▌"
    assert bar(1e-6, 0.2, 10) == "▌"
    assert bar(0.0, 0.2, 10) == ""
