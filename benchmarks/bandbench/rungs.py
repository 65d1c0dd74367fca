"""Rungs: how well a short training ranks what a full one will come to."""

from __future__ import annotations

from bandsearch.search.strata import class_of
from bandsearch.values.value import Value
from benchmarks.bandbench.correlation import spearman, within
from benchmarks.bandbench.table import Table


class RungSignal(Value):
    """Of the loss at a rung with the full loss, every entry at its own best rate: over all entries, within width
    classes (as the search compares them), and within equal width.

    On entries with one seed both losses are of that seed, which has the same data order in both: that flatters.
    """

    steps: int
    entries: int
    overall: float | None
    within_classes: float | None
    within_width: float | None


def rung_signals(table: Table) -> tuple[RungSignal, ...]:
    own = [index for index in table.own if table.options[index].entry.is_band]
    full = [float(table.full[index]) for index in own]
    widths = [len(table.options[index].entry.layers) for index in own]
    classes = [class_of(width, table.layer_count) for width in widths]
    found = []
    for column, steps in enumerate(table.header.rungs):
        losses = [float(table.means[index, column]) for index in own]
        found.append(
            RungSignal(
                steps=steps,
                entries=len(own),
                overall=spearman(losses, full),
                within_classes=within(losses, full, classes),
                within_width=within(losses, full, widths),
            )
        )
    return tuple(found)
