"""A planted pair of places, far apart: a search that may split its band finds what no single band can be."""

from __future__ import annotations

import itertools
import math
import statistics
from dataclasses import dataclass

from bench import planted_search
from surface import LAYERS, Surface

from bandsearch.search.finalists import pick_finalists
from bandsearch.values.band import Band
from bandsearch.values.candidate import Candidate
from bandsearch.values.space import BandSpace, SearchSpace

PLACES = (1, 8, 9)


@dataclass(frozen=True)
class Pair(Surface):
    """Layers 1, 8 and 9 matter, every other one costs a little; one rate is right."""

    def optimum(self) -> Candidate:
        return self._at(Band(start=1, stop=2), Band(start=8, stop=10))

    def end_loss(self, candidate: Candidate) -> float:
        missing = len(set(PLACES) - set(candidate.layers))
        beside = len(set(candidate.layers) - set(PLACES))
        return 0.2 + 0.15 * missing + 0.02 * beside + 0.12 * math.log10(candidate.learning_rate / self.rate) ** 2

    def best_single_band(self) -> float:
        bands = (Band(start=start, stop=stop) for start, stop in itertools.combinations(range(LAYERS + 1), 2))
        return min(self.end_loss(self._at(band)) for band in bands)

    def _at(self, *bands: Band) -> Candidate:
        return Candidate(bands=bands, rank=32, alpha=32, targets=("all",), learning_rate=self.rate)


def test_a_pair_of_places_is_found_where_bands_may_be_split() -> None:
    surface = Pair()

    def found(*, split: bool) -> list[float]:
        space = SearchSpace(name="planted", bands=BandSpace(split=split))
        runs = [pick_finalists(planted_search(surface, seed, 60, space=space), LAYERS, 4) for seed in range(9)]
        return [min(surface.end_loss(each.candidate) for each in run if not each.role.is_baseline) for run in runs]

    whole, in_pieces = found(split=False), found(split=True)
    assert min(whole) >= surface.best_single_band()
    assert min(in_pieces) < surface.best_single_band()
    assert statistics.median(in_pieces) < statistics.median(whole)
