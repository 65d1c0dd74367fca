"""Rungs: how well a short training ranks what a full one will come to."""

from __future__ import annotations

import numpy as np

from bandsearch.search.correlation import spearman, within
from bandsearch.search.strata import class_of
from bandsearch.values.value import Value
from benchmarks.bandbench.entry import Entry
from benchmarks.bandbench.table import Table


class RungSignal(Value):
    """Of the loss at a rung with the full loss, both at the rate that is best there, over the bands whose rates were
    all trained in full: over all, within width classes (as the search compares them), and within equal width.
    `decayed`: with the search's proxies, or at a constant rate.

    Both losses are of seed 0, which has the same data order in both: that flatters.
    """

    steps: int
    decayed: bool
    entries: int
    overall: float | None
    within_classes: float | None
    within_width: float | None


def rung_signals(table: Table) -> tuple[RungSignal, ...]:
    found = []
    for decayed, read in ((True, table.read), (False, table.constant)):
        bands = [i for i, option in enumerate(table.options) if option.seeds and option.entry.is_band]
        by_entry: dict[Entry, list[int]] = {}
        for index in bands:
            if not np.isnan(read[index]).any():
                by_entry.setdefault(table.options[index].entry, []).append(index)
        alike = {entry: group for entry, group in by_entry.items() if (entry.rank, entry.targets) == table.habit}
        if not alike:
            continue
        best = np.array([read[group].min(axis=0) for group in alike.values()])
        widths = [len(entry.layers) for entry in alike]
        classes = [class_of(width, table.layer_count) for width in widths]
        for column, steps in enumerate(table.header.rungs):
            losses, full = best[:, column].tolist(), best[:, -1].tolist()
            found.append(
                RungSignal(
                    steps=steps,
                    decayed=decayed,
                    entries=len(alike),
                    overall=spearman(losses, full),
                    within_classes=within(losses, full, classes),
                    within_width=within(losses, full, widths),
                )
            )
    return tuple(found)
