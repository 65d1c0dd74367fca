"""One score per layer out of several signals."""

from __future__ import annotations

from collections.abc import Sequence

from bandsearch.values.profile import ModuleSensitivity


def layer_scores(signals: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """The mean over signals of each layer's rank, divided so that the scores of all layers sum to 1.

    Every signal holds one number per layer, larger meaning more sensitive. Ranks (1 for the smallest, equal numbers
    share their mean rank) and not the numbers themselves, because signals have different units and a single layer
    may exceed the others many times over. Needs at least one signal.
    """
    ranks = [_ranks(signal) for signal in signals]
    totals = [sum(each) for each in zip(*ranks, strict=True)]
    return tuple(total / sum(totals) for total in totals)


def coherence_by_layer(modules: Sequence[ModuleSensitivity], layer_count: int) -> tuple[float, ...]:
    """The mean normalised gradient sensitivity of each layer's modules; 0 for a layer without any."""
    layers = [[module.normalised for module in modules if module.layer == layer] for layer in range(layer_count)]
    return tuple(sum(layer) / max(1, len(layer)) for layer in layers)


def _ranks(values: Sequence[float]) -> list[float]:
    return [
        sum(other < value for other in values) + (1 + sum(other == value for other in values)) / 2 for value in values
    ]
