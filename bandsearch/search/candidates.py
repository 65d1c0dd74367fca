"""Candidates as points of a search space, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from bandsearch.search.strata import WidthClass, class_of
from bandsearch.values.band import Band
from bandsearch.values.candidate import Candidate, Init, Method
from bandsearch.values.errors import SpaceError
from bandsearch.values.layout import Layout
from bandsearch.values.profile import RateRange
from bandsearch.values.space import SearchSpace

Params = Mapping[str, Any]


class CandidateCode:
    """Maps Optuna parameters to candidates of one space on one decoder, and candidates back to parameters.

    Every distribution has a fixed range, so that all parameters stay in TPE's joint model:

    - `width`: layers of a band in units of `snap`.
    - `start`: position in [0, 1] among the starts that the space allows for this width (0 the lowest, 1 the highest).
      A plain start would need a range that depends on the width; clipping it would pile bands up at the last layer.
    - with more than one band these get a suffix (`start_2`); the starts are sorted, so bands never overlap, and bands
      that touch are one.
    - `rank_position`: place in the space's ascending ranks. `rate`: learning rate, log-uniform.
    - `targets`, `method`, `init`: as written in the space.

    What offers no choice is no parameter.
    """

    def __init__(self, space: SearchSpace, layout: Layout, rate_range: RateRange) -> None:
        self.space = space
        self.layer_count = layout.layer_count
        self.ranks = tuple(sorted(set(space.ranks)))
        self.targets = _distinct_targets(space, layout)
        self.rates = rate_bounds(space, rate_range)
        self.snap = min(space.bands.snap, layout.layer_count)
        self._units = math.ceil(layout.layer_count / self.snap)
        self._lowest = min(self._in_units(space.bands.start[0]), self._units - 1)
        self._highest = max(self._lowest, min(self._in_units(space.bands.start[1]), self._units - 1))
        room = self._units - self._lowest
        if room < space.bands.count:
            raise SpaceError(
                f"{space.bands.count} bands do not fit into the {room * self.snap} layers that the space leaves.",
                "Lower bands.count, bands.start or bands.snap.",
            )
        widest = room - (space.bands.count - 1)
        self._widths = tuple(min(max(1, self._in_units(share)), widest) for share in space.bands.width)
        self.distributions = self._distributions()

    @property
    def width_turns(self) -> tuple[tuple[int, int], ...]:
        """The smallest and largest `width` of every width class that the space reaches, narrow to wide."""
        by_class: dict[WidthClass, list[int]] = {}
        for width in range(self._widths[0], self._widths[1] + 1):
            layers = min(width * self.snap, self.layer_count)
            by_class.setdefault(class_of(layers, self.layer_count), []).append(width)
        return tuple((widths[0], widths[-1]) for widths in by_class.values())

    def decode(self, params: Params) -> Candidate:
        """The candidate at `params` (values in the ranges of `distributions`)."""
        rank = self.ranks[params.get("rank_position", 0)]
        return Candidate(
            bands=self._bands(params),
            rank=rank,
            alpha=alpha_for(self.space, rank),
            targets=split_targets(params.get("targets", next(iter(self.targets)))),
            learning_rate=params.get("rate", self.rates[0]),
            method=Method(params.get("method", self.space.methods[0])),
            init=Init(params.get("init", self.space.inits[0])),
        )

    def encode(self, candidate: Candidate) -> dict[str, Any] | None:
        """Parameters that decode to `candidate`, None where it lies outside the space (as a baseline may)."""
        widths = [math.ceil(band.width / self.snap) for band in candidate.bands]
        lowest, room = self._room(widths)
        if room < 0 or len(widths) != self.space.bands.count or candidate.rank not in self.ranks:
            return None
        everything: dict[str, Any] = {}
        before = 0
        for index, (band, width) in enumerate(zip(candidate.bands, widths, strict=True)):
            offset = band.start // self.snap - before - lowest
            everything[_indexed("start", index)] = (offset + 0.5) / (room + 1)
            everything[_indexed("width", index)] = width
            before += width
        everything |= {
            "rank_position": self.ranks.index(candidate.rank),
            "rate": candidate.learning_rate,
            "targets": "+".join(candidate.targets),
            "method": candidate.method.value,
            "init": candidate.init.value,
        }
        params = {name: everything[name] for name in self.distributions}
        if not all(_allows(self.distributions[name], value) for name, value in params.items()):
            return None
        return params if self.decode(params) == candidate else None

    def _distributions(self) -> dict[str, BaseDistribution]:
        bands: dict[str, BaseDistribution] = {}
        for index in range(self.space.bands.count):
            bands[_indexed("start", index)] = FloatDistribution(0.0, 1.0)
            bands[_indexed("width", index)] = IntDistribution(*self._widths)
        others: dict[str, BaseDistribution] = {
            "rank_position": IntDistribution(0, len(self.ranks) - 1),
            "rate": FloatDistribution(*self.rates, log=True),
            "targets": CategoricalDistribution(self.targets),
            "method": CategoricalDistribution([method.value for method in self.space.methods]),
            "init": CategoricalDistribution([init.value for init in self.space.inits]),
        }
        return {name: each for name, each in (bands | others).items() if not each.single()}

    def _bands(self, params: Params) -> tuple[Band, ...]:
        count = self.space.bands.count
        widths = [params.get(_indexed("width", index), self._widths[0]) for index in range(count)]
        while self._room(widths)[1] < 0:
            widths[widths.index(max(widths))] -= 1
        lowest, room = self._room(widths)
        shares = sorted(params[_indexed("start", index)] for index in range(count))
        bands: list[Band] = []
        for share, width, before in zip(shares, widths, _running_sums(widths), strict=True):
            start = lowest + before + min(int(share * (room + 1)), room)
            band = Band(start=start * self.snap, stop=min((start + width) * self.snap, self.layer_count))
            if bands and bands[-1].stop == band.start:
                band = Band(start=bands.pop().start, stop=band.stop)
            bands.append(band)
        return tuple(bands)

    def _room(self, widths: list[int]) -> tuple[int, int]:
        """The lowest start, and how many units the bands together can be moved up from there; negative: too wide."""
        last_start = min(self._highest + sum(widths[:-1]), self._units - widths[-1])
        return self._lowest, last_start - self._lowest - sum(widths[:-1])

    def _in_units(self, share: float) -> int:
        return math.floor(share * self.layer_count / self.snap + 0.5)


def rate_bounds(space: SearchSpace, rate_range: RateRange) -> tuple[float, float]:
    """The learning rates to search: the probe's span, where the space does not overrule it."""
    low = space.learning_rate.low or rate_range.low
    high = space.learning_rate.high or rate_range.high
    return min(low, high), max(low, high)


def alpha_for(space: SearchSpace, rank: int) -> float:
    """LoRA's alpha under the space's rule: a number, or a multiple of the rank written as "2r"."""
    return float(space.alpha.removesuffix("r")) * rank if isinstance(space.alpha, str) else float(space.alpha)


def split_targets(written: str) -> tuple[str, ...]:
    """ "q_proj+v_proj" as a candidate's targets."""
    return tuple(part.strip() for part in written.split("+"))


def _distinct_targets(space: SearchSpace, layout: Layout) -> tuple[str, ...]:
    """The space's choices on this decoder: groups it does not have are left out, and of equal choices the first stays.

    Raises AdapterError for a module name that the decoder does not have.
    """
    missing_groups = {"attention", "mlp"} - set(layout.groups)
    chosen: dict[tuple[str, ...], str] = {}
    for written in space.targets:
        names = split_targets(written)
        if missing_groups.isdisjoint(names):
            chosen.setdefault(tuple(linear.name for linear in layout.targets(names)), written)
    if not chosen:
        raise SpaceError(
            f"{layout.family} has none of the targets of space {space.name!r} ({', '.join(space.targets)}).",
            f"Choose from {', '.join(layout.target_names)}.",
        )
    return tuple(chosen.values())


def _allows(distribution: BaseDistribution, value: Any) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    return bool(distribution._contains(distribution.to_internal_repr(value)))


def _indexed(name: str, index: int) -> str:
    return name if index == 0 else f"{name}_{index + 1}"


def _running_sums(widths: list[int]) -> list[int]:
    return [sum(widths[:index]) for index in range(len(widths))]
