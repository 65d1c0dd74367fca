"""How well cheap signals predicted dear ones in one run."""

from __future__ import annotations

from pydantic import Field

from bandsearch.values.value import Value


class Agreement(Value):
    """Spearman's rank correlation over `pairs` candidates; 1 is perfect agreement."""

    correlation: float
    pairs: int
    chance: float = Field(description="95 % of the correlations of what is unrelated lie between minus this and this")


class Signal(Value):
    """How `predictor` agreed with `outcome`; None where there are too few candidates to tell even a perfect order from
    chance.

    `within` compares only candidates of one width class (thirds of depth), because width alone predicts short trainings
    well: a signal that says no more than the width has found nothing.
    """

    predictor: str
    outcome: str
    across: Agreement
    within: Agreement | None
