"""What the parts of a trained adapter are worth: validation loss with only some layers' factors left in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import nn

from bandsearch.data.dataset import Encoded
from bandsearch.probe.factors import only_layers
from bandsearch.probe.forward import mean_loss
from bandsearch.probe.proposals import widths, windows
from bandsearch.values.band import Band
from bandsearch.values.layout import Layout

# A gain below this share of the base's loss is too small to be divided up.
LEAST_GAIN = 0.01


@dataclass(frozen=True)
class Worth:
    """Shares of the whole adapter's gain in validation loss; what there was no time or no gain for is left out.

    `alone[layer]`: what is left with only this layer's factors. `missing[layer]`: what is lost without them.
    `kept[band]`: what is left with only the band's factors.
    """

    alone: tuple[float, ...] | None = None
    missing: tuple[float, ...] | None = None
    kept: dict[Band, float] = field(default_factory=dict)


def worth_of_parts(
    model: nn.Module, layout: Layout, examples: Sequence[Encoded], may_go_on: Callable[[], bool]
) -> Worth:
    """Measure the parts of the full-depth adapter that `model` carries, one pass over `examples` for each part.

    Asks `may_go_on` before every pass, and gives up what is not complete: all layers, or all positions of a width.
    """

    def loss_with(layers: Sequence[int]) -> float:
        with only_layers(model, layout, layers):
            return mean_loss(model, examples)

    every = range(layout.layer_count)
    base, full = loss_with(()), loss_with(every)
    gain = base - full
    if not gain > LEAST_GAIN * base:
        return Worth()

    def shares(parts: Sequence[Sequence[int]]) -> tuple[float, ...] | None:
        measured: list[float] = []
        for layers in parts:
            if not may_go_on():
                return None
            measured.append((base - loss_with(layers)) / gain)
        return tuple(measured)

    alone = shares([(layer,) for layer in every])
    kept: dict[Band, float] = {}
    for width in widths(layout.layer_count):
        bands = windows(layout.layer_count, width)
        measured = alone if width == 1 else shares([band.layers for band in bands])
        if measured is not None and len(measured) == len(bands):
            kept |= dict(zip(bands, measured, strict=True))
    left = shares([tuple(other for other in every if other != layer) for layer in every])
    missing = None if left is None else tuple(1 - share for share in left)
    return Worth(alone=alone, missing=missing, kept=kept)
