"""An entry: one place for an adapter, with its rank and targets; its learning rate is searched for."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Mapping

from pydantic import Field

from bandsearch.search.candidates import split_targets
from bandsearch.values.band import Band
from bandsearch.values.candidate import Candidate
from bandsearch.values.value import Value

# One entry in so many gets all seeds for no reason.
CONTROLS = 8
# Losses that differ by no more than this share are equal; of rates that end equal the lowest is an entry's own. With
# nothing to learn the highest rates end as low as any on one seed and break off on the next.
EQUAL = 0.02


class Entry(Value):
    """`bands` as (start, stop) pairs: one for a contiguous band, more for a set of layers. `targets` as in a space."""

    bands: tuple[tuple[int, int], ...] = Field(min_length=1)
    rank: int = Field(ge=1)
    targets: str

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(layer for start, stop in self.bands for layer in range(start, stop))

    @property
    def start(self) -> int:
        return self.bands[0][0]

    @property
    def is_band(self) -> bool:
        return len(self.bands) == 1

    def is_ends(self, layer_count: int) -> bool:
        """Whether it is a band in two pieces, the first layers and the last."""
        return len(self.bands) == 2 and self.bands[0][0] == 0 and self.bands[1][1] == layer_count

    @property
    def is_drawn(self) -> bool:
        """Whether it gets all seeds whatever its loss, one in CONTROLS: what is chosen for a low loss at seed 0 is
        lucky there, so seed 0 is judged by those that were not chosen."""
        return int.from_bytes(hashlib.sha256(self.model_dump_json().encode()).digest()[:4], "big") % CONTROLS == 0

    def candidate(self, rate: float, alpha: float) -> Candidate:
        return Candidate(
            bands=tuple(Band(start=start, stop=stop) for start, stop in self.bands),
            rank=self.rank,
            alpha=alpha,
            targets=split_targets(self.targets),
            learning_rate=rate,
        )

    @classmethod
    def of_layers(cls, layers: list[int], rank: int, targets: str) -> Entry:
        """Consecutive layers make one band."""
        bands: list[tuple[int, int]] = []
        for layer in sorted(layers):
            if bands and bands[-1][1] == layer:
                bands[-1] = (bands[-1][0], layer + 1)
            else:
                bands.append((layer, layer + 1))
        return cls(bands=tuple(bands), rank=rank, targets=targets)


def best_rate(losses: Mapping[float, float]) -> float:
    """The lowest of the rates whose finite losses in nats are equal to the lowest one."""
    bound = min(losses.values()) * (1 + EQUAL)
    return min(rate for rate, loss in losses.items() if loss <= bound)


def contiguous(layer_count: int, rank: int, targets: str) -> list[Entry]:
    """Every band, in the order of its start: neighbours in the list share a cached prefix."""
    pairs = itertools.combinations(range(layer_count + 1), 2)
    return [Entry(bands=((start, stop),), rank=rank, targets=targets) for start, stop in pairs]


def ends(layer_count: int, rank: int, targets: str) -> list[Entry]:
    """Every pair of first and last layers that is no wider than half of the depth."""
    return [
        Entry(bands=((0, first), (layer_count - last, layer_count)), rank=rank, targets=targets)
        for first in range(1, layer_count // 2)
        for last in range(1, layer_count // 2 - first + 1)
    ]


def scattered(layer_count: int, width: int, count: int, rank: int, targets: str) -> list[Entry]:
    """Up to `count` different random sets of `width` layers that are no band. The same on every machine."""
    source = random.Random(f"layer sets {layer_count} {width}")
    found: dict[tuple[tuple[int, int], ...], Entry] = {}
    for _ in range(100 * count):
        if len(found) == count or not 1 < width < layer_count:
            break
        entry = Entry.of_layers(source.sample(range(layer_count), width), rank, targets)
        if not entry.is_band:
            found.setdefault(entry.bands, entry)
    return sorted(found.values(), key=lambda entry: entry.bands)
