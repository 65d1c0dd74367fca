"""What a run teaches about its model: a record of the atlas, and what a later search takes from it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bandsearch.values.band import Band
from bandsearch.values.candidate import Candidate, Role
from bandsearch.values.evaluation import Choice, Finalist, Interval, Winner
from bandsearch.values.layout import Layout
from bandsearch.values.profile import RateRange
from bandsearch.values.signal import Signal
from bandsearch.values.value import Value


class BandReading(Value):
    """The best reading of the search on one set of bands: validation loss after `steps`, the most that any got to."""

    bands: tuple[Band, ...]
    candidates: int = Field(ge=1, description="how many were tried there")
    steps: int
    loss: float


class AtlasRecord(Value):
    """One complete run. `model` is a hub id, or the name of a directory without its path; `fingerprint` and
    `data_fingerprint` are equal for equal weights and equal rows.
    """

    format: Literal[1] = 1
    date: str = Field(description="UTC, ISO 8601")
    model: str
    slug: str
    fingerprint: str
    layout: Layout
    data: str
    data_fingerprint: str
    shape: str
    layer_scores: tuple[float, ...]
    rates: RateRange
    tried: tuple[BandReading, ...]
    signals: tuple[Signal, ...] = Field(
        default=(), description="how well probe and short trainings predicted longer ones"
    )
    full_steps: int
    winner: Winner
    gain: Interval | None = Field(description="test loss, winner minus tuned full depth; None where they are one")
    versions: dict[str, str]

    @property
    def layer_count(self) -> int:
        return self.layout.layer_count

    @property
    def recommended(self) -> Finalist | None:
        """The winner, on all layers too; where the baseline won the best candidate that leaves layers out and was
        confirmed on two seeds or more. None without one, and where nothing was compared."""
        winner = self.winner
        if winner.choice is Choice.UNCOMPARED:
            return None
        if winner.role is not Role.FULL_DEPTH:
            return next((each for each in winner.finalists if each.candidate == winner.candidate), None)
        partial = [each for each in winner.finalists if len(each.candidate.layers) < self.layer_count]
        return min((each for each in partial if len(each.losses) > 1), key=lambda each: each.loss, default=None)

    @property
    def tuned_baseline(self) -> Candidate | None:
        """Full depth at the rate that the confirmation preferred, or the better of two final trainings; None where
        there was one rate only."""
        compared = self.winner.choice is not Choice.UNCOMPARED or len(self.winner.trainings) > 1
        return self.winner.baseline if compared else None


class Suggestion(Value):
    """A candidate that an earlier run recommends, and why in words."""

    candidate: Candidate
    reason: str


class Prior(Value):
    """What a search starts from beside baselines and probe: the content of `prior.json`. The most telling first."""

    suggestions: tuple[Suggestion, ...] = ()
