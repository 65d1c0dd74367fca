"""Bands and scores drawn over relative depth, so that decoders of different depth stand above each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.text import Text

if TYPE_CHECKING:
    from bandsearch.values.band import Band

WIDTH = 48
INSIDE, OUTSIDE = "█", "·"
SHADES = " ░▒▓█"


def layers_at(layer_count: int) -> list[int]:
    """The layer in the middle of each of WIDTH equal parts of the depth."""
    return [(2 * cell + 1) * layer_count // (2 * WIDTH) for cell in range(WIDTH)]


def strip(bands: Sequence[Band], layer_count: int, style: str = "green") -> Text:
    """The layers of `bands` filled."""
    inside = {layer for band in bands for layer in band.layers}
    cells = [layer in inside for layer in layers_at(layer_count)]
    return Text.assemble(*((INSIDE, style) if filled else (OUTSIDE, "dim") for filled in cells))


def over_depth(per_layer: Sequence[float]) -> list[float]:
    """One value per cell from one per layer."""
    return [per_layer[layer] for layer in layers_at(len(per_layer))]


def heat(cells: Sequence[float], style: str = "cyan") -> Text:
    """Shades from nothing to the largest of `cells`, which are not negative; blank where all are 0."""
    largest = max(cells, default=0.0)
    if largest <= 0:
        return Text(" " * len(cells))
    top = len(SHADES) - 1
    return Text("".join(SHADES[min(top, round(top * cell / largest))] for cell in cells), style)
