"""The space of a table: what its entries are a choice of, for bandsearch and for every other arm that searches."""

from __future__ import annotations

import math

from bandsearch.search.candidates import CandidateCode
from bandsearch.values.profile import RateRange
from bandsearch.values.space import BandSpace, RateSpace, SearchSpace
from benchmarks.bandbench.table import Table


def code_of(table: Table, found: RateRange | None = None) -> CandidateCode:
    """The choices of the table and no others; of its learning rates those that a probe `found`, where it is given."""
    low, high = ends = _rate_ends(table)
    if found is not None:
        low, high = (min(max(rate, ends[0]), ends[1]) for rate in (found.low, found.high))
    space = SearchSpace(
        name="table",
        bands=BandSpace(split=table.splits, width=(1 / table.layer_count, 1.0)),
        ranks=table.ranks,
        alpha=table.header.alpha,
        targets=table.targets,
        learning_rate=RateSpace(low=low, high=high),
    )
    return CandidateCode(space, table.header.layout, table.profile.rate_range)


def _rate_ends(table: Table) -> tuple[float, float]:
    """Half a grid step beyond the table's rates, so that every rate is the nearest one of an equal share."""
    rates = table.rates
    step = math.sqrt(rates[1] / rates[0]) if len(rates) > 1 else 1.0
    return rates[0] / step, rates[-1] * step
