"""Where the bands of a candidate lie, as parameters of a search, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution

from bandsearch.search.strata import WidthClass, class_of
from bandsearch.values.band import Band
from bandsearch.values.errors import SpaceError
from bandsearch.values.space import BandSpace

Params = Mapping[str, Any]
Cell = tuple[float, float]
# A split band's `gap` begins here; below it the band is in one piece.
SPLIT = 0.5


class BandCode:
    """Maps parameters to the bands of a space on a decoder of `layer_count` layers, and bands back to parameters.

    Every distribution has a fixed range:

    - `width`: layers of a band in units of `snap`, of a split one both pieces together.
    - `start`: position in [0, 1] among the starts that the space allows for this width (0 the lowest, 1 the highest).
      A plain start would need a range that depends on the width; clipping it would pile bands up at the last layer.
    - `gap`, where the space splits bands: below 0.5 a band is in one piece, from there to 1 what share of the layers
      above the lowest start that the band leaves free lies between its pieces. `part`: how its layers are shared
      between them, 0 for one layer in the first piece, 1 for one in the second. One layer alone cannot be split.
    - with more than one band `start` and `width` get a suffix (`start_2`); the starts are sorted, so bands never
      overlap, and bands that touch are one.
    """

    def __init__(self, space: BandSpace, layer_count: int) -> None:
        self._space, self._layer_count = space, layer_count
        self.splits = space.split and space.count == 1
        self.snap = min(space.snap, layer_count)
        self._units = math.ceil(layer_count / self.snap)
        self._lowest = min(self._in_units(space.start[0]), self._units - 1)
        self._highest = max(self._lowest, min(self._in_units(space.start[1]), self._units - 1))
        room = self._units - self._lowest
        if room < space.count:
            raise SpaceError(
                f"{space.count} bands do not fit into the {room * self.snap} layers that the space leaves.",
                "Lower bands.count, bands.start or bands.snap.",
            )
        widest = room - (space.count - 1)
        self._widths = tuple(min(max(1, self._in_units(share)), widest) for share in space.width)

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        found: dict[str, BaseDistribution] = {}
        for index in range(self._space.count):
            found[_indexed("start", index)] = FloatDistribution(0.0, 1.0)
            found[_indexed("width", index)] = IntDistribution(*self._widths)
        if self.splits:
            found |= {name: FloatDistribution(0.0, 1.0) for name in ("gap", "part")}
        return found

    @property
    def width_turns(self) -> tuple[tuple[int, int], ...]:
        """The smallest and largest `width` of every width class that the space reaches, narrow to wide."""
        by_class: dict[WidthClass, list[int]] = {}
        for width in range(self._widths[0], self._widths[1] + 1):
            layers = min(width * self.snap, self._layer_count)
            by_class.setdefault(class_of(layers, self._layer_count), []).append(width)
        return tuple((widths[0], widths[-1]) for widths in by_class.values())

    def decode(self, params: Params) -> tuple[Band, ...]:
        count = self._space.count
        widths = [params.get(_indexed("width", index), self._widths[0]) for index in range(count)]
        if self.splits:
            return self._pieces(widths[0], params["start"], params["gap"], params["part"])
        while self._room(widths)[1] < 0:
            widths[widths.index(max(widths))] -= 1
        lowest, room = self._room(widths)
        shares = sorted(params[_indexed("start", index)] for index in range(count))
        bands: list[Band] = []
        for share, width, before in zip(shares, widths, _running_sums(widths), strict=True):
            band = self._band(lowest + before + _place(share, room), width)
            if bands and bands[-1].stop == band.start:
                band = Band(start=bands.pop().start, stop=band.stop)
            bands.append(band)
        return tuple(bands)

    def encode(self, bands: Sequence[Band]) -> dict[str, Any] | None:
        """The middles of `cells`."""
        cells = self.cells(bands)
        if cells is None:
            return None
        return {name: low if isinstance(low, int) else (low + high) / 2 for name, (low, high) in cells.items()}

    def cells(self, bands: Sequence[Band]) -> dict[str, Cell] | None:
        """By parameter the lowest and the highest value that decode to `bands`: all of [0, 1] where it decides nothing,
        such as where full depth starts.

        None where there are more or fewer bands than the space has, or they are too wide for it. Whoever asks checks
        that the parameters decode to the same bands.
        """
        widths = [math.ceil(band.width / self.snap) for band in bands]
        if self.splits:
            return self._cells_of_pieces(bands, widths)
        lowest, room = self._room(widths)
        if room < 0 or len(widths) != self._space.count:
            return None
        cells: dict[str, Cell] = {}
        for index, (band, before) in enumerate(zip(bands, _running_sums(widths), strict=True)):
            cells[_indexed("start", index)] = _cell(band.start // self.snap - before - lowest, room)
            cells[_indexed("width", index)] = (widths[index], widths[index])
        return cells

    def _pieces(self, width: int, start: float, gap: float, part: float) -> tuple[Band, ...]:
        free = self._free(width)
        left_out = 0 if gap < SPLIT or free == 0 or width < 2 else 1 + _place((gap - SPLIT) / (1 - SPLIT), free - 1)
        lowest, room = self._room([width + left_out])
        begin = lowest + _place(start, room)
        if not left_out:
            return (self._band(begin, width),)
        first = 1 + _place(part, width - 2)
        return self._band(begin, first), self._band(begin + first + left_out, width - first)

    def _cells_of_pieces(self, bands: Sequence[Band], widths: Sequence[int]) -> dict[str, Cell] | None:
        width, begin = sum(widths), bands[0].start // self.snap
        left_out = bands[-1].start // self.snap - begin - widths[0] if len(bands) == 2 else 0
        lowest, room = self._room([width + left_out])
        if len(bands) > 2 or room < 0:
            return None
        gap, part = (0.0, SPLIT), (0.0, 1.0)
        if left_out:
            low, high = _cell(left_out - 1, self._free(width) - 1)
            gap = (SPLIT + (1 - SPLIT) * low, SPLIT + (1 - SPLIT) * high)
            part = _cell(widths[0] - 1, width - 2)
        return {"width": (width, width), "start": _cell(begin - lowest, room), "gap": gap, "part": part}

    def _free(self, width: int) -> int:
        return self._units - self._lowest - width

    def _band(self, start: int, width: int) -> Band:
        return Band(start=start * self.snap, stop=min((start + width) * self.snap, self._layer_count))

    def _room(self, widths: Sequence[int]) -> tuple[int, int]:
        """The lowest start, and how many units the bands together can be moved up from there; negative: too wide."""
        last_start = min(self._highest + sum(widths[:-1]), self._units - widths[-1])
        return self._lowest, last_start - self._lowest - sum(widths[:-1])

    def _in_units(self, share: float) -> int:
        return math.floor(share * self._layer_count / self.snap + 0.5)


def _place(share: float, last: int) -> int:
    """Of the places 0 to `last` the one at `share`, all equally likely where it is uniform in [0, 1]."""
    return min(int(share * (last + 1)), last)


def _cell(place: int, last: int) -> tuple[float, float]:
    """What `_place` takes for `place`."""
    return place / (last + 1), (place + 1) / (last + 1)


def _indexed(name: str, index: int) -> str:
    return name if index == 0 else f"{name}_{index + 1}"


def _running_sums(widths: Sequence[int]) -> list[int]:
    return [sum(widths[:index]) for index in range(len(widths))]
