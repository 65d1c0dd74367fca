"""Candidates as points of a search space, and back."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from bandsearch.search.bands import BandCode, Cell
from bandsearch.values.candidate import Candidate, Init, Method
from bandsearch.values.errors import AdapterError, SpaceError
from bandsearch.values.layout import Layout, Linear
from bandsearch.values.profile import RateRange
from bandsearch.values.space import SearchSpace

Params = Mapping[str, Any]


class CandidateCode:
    """Maps Optuna parameters to candidates of one space on one decoder, and candidates back to parameters.

    Every distribution has a fixed range, so that all parameters stay in TPE's joint model: those of `BandCode`,
    `rank_position` (place in the space's ascending ranks), `rate` (learning rate, log-uniform), and `targets`,
    `method`, `init` as written in the space. What offers no choice is no parameter.
    """

    def __init__(self, space: SearchSpace, layout: Layout, rate_range: RateRange) -> None:
        self.space = space
        self.layer_count = layout.layer_count
        self.ranks = tuple(sorted(set(space.ranks)))
        self._layout, self._choices = layout, _choices_of_targets(space, layout)
        self.targets = tuple(self._choices.values())
        # Every linear module, as this space calls it where it offers that.
        self.everything = self.called(("all",)) or ("all",)
        self.rates = rate_bounds(space, rate_range)
        self._bands = BandCode(space.bands, layout.layer_count)
        self.snap, self.splits = self._bands.snap, self._bands.splits
        self.width_turns = self._bands.width_turns
        self.distributions = self._distributions()
        # Every proposal asks for all that has been tried.
        self._placed: dict[Candidate, tuple[dict[str, Any], dict[str, Cell]] | None] = {}

    def called(self, targets: tuple[str, ...]) -> tuple[str, ...] | None:
        """What the space calls these modules; None where it does not offer them, or the decoder does not have them."""
        try:
            written = self._choices.get(self._layout.targets(targets))
        except AdapterError:
            return None
        return None if written is None else split_targets(written)

    def decode(self, params: Params) -> Candidate:
        """The candidate at `params` (values in the ranges of `distributions`)."""
        rank = self.ranks[params.get("rank_position", 0)]
        return Candidate(
            bands=self._bands.decode(params),
            rank=rank,
            alpha=self.space.alpha_at(rank),
            targets=split_targets(params.get("targets", next(iter(self.targets)))),
            learning_rate=params.get("rate", self.rates[0]),
            method=Method(params.get("method", self.space.methods[0])),
            init=Init(params.get("init", self.space.inits[0])),
        )

    def adapts(self, candidate: Candidate) -> bool:
        """Whether a layer of its bands has any of its targets, which not every layer need have."""
        return self._layout.adapts(candidate.layers, candidate.targets)

    def encode(self, candidate: Candidate) -> dict[str, Any] | None:
        """Parameters that decode to `candidate`, None where it lies outside the space (as a baseline may) or would
        adapt nothing."""
        placed = self._place(candidate)
        return None if placed is None else dict(placed[0])

    def drawn(self, candidate: Candidate, numbers: random.Random) -> dict[str, Any] | None:
        """As `encode`, with values drawn from all that decode to the same bands: what does not matter says nothing."""
        placed = self._place(candidate)
        if placed is None:
            return None
        params, cells = placed
        places = {name: numbers.uniform(*cell) for name, cell in cells.items()}
        return params | {name: place for name, place in places.items() if isinstance(params[name], float)}

    def _place(self, candidate: Candidate) -> tuple[dict[str, Any], dict[str, Cell]] | None:
        """Its parameters, and between which values those of its bands may lie."""
        try:
            return self._placed[candidate]
        except KeyError:
            params = self._encode(candidate)
        cells = None if params is None else self._bands.cells(candidate.bands)
        placed = None
        if params is not None and cells is not None:
            placed = params, {name: cell for name, cell in cells.items() if name in params}
        return self._placed.setdefault(candidate, placed)

    def _encode(self, candidate: Candidate) -> dict[str, Any] | None:
        bands = self._bands.encode(candidate.bands)
        if bands is None or candidate.rank not in self.ranks:
            return None
        everything = bands | {
            "rank_position": self.ranks.index(candidate.rank),
            "rate": candidate.learning_rate,
            "targets": "+".join(candidate.targets),
            "method": candidate.method.value,
            "init": candidate.init.value,
        }
        params = {name: everything[name] for name in self.distributions}
        if not all(_allows(self.distributions[name], value) for name, value in params.items()):
            return None
        return params if self.decode(params) == candidate and self.adapts(candidate) else None

    def _distributions(self) -> dict[str, BaseDistribution]:
        others: dict[str, BaseDistribution] = {
            "rank_position": IntDistribution(0, len(self.ranks) - 1),
            "rate": FloatDistribution(*self.rates, log=True),
            "targets": CategoricalDistribution(self.targets),
            "method": CategoricalDistribution([method.value for method in self.space.methods]),
            "init": CategoricalDistribution([init.value for init in self.space.inits]),
        }
        return {name: each for name, each in (self._bands.distributions | others).items() if not each.single()}


def require_fit(space: SearchSpace, layout: Layout) -> None:
    """Raises SpaceError for a space whose bands or targets this decoder cannot have."""
    BandCode(space.bands, layout.layer_count)
    _choices_of_targets(space, layout)


def rate_bounds(space: SearchSpace, rate_range: RateRange) -> tuple[float, float]:
    """The learning rates to search: the probe's span, where the space does not overrule it. A bound that somebody has
    set holds wherever that span lies; beyond it there is nothing left but the bound."""
    low, high = space.learning_rate.low, space.learning_rate.high
    if low is None:
        low = rate_range.low if high is None else min(rate_range.low, high)
    return low, max(rate_range.high, low) if high is None else high


def split_targets(written: str) -> tuple[str, ...]:
    """ "q_proj+v_proj" as a candidate's targets."""
    return tuple(part.strip() for part in written.split("+"))


def _choices_of_targets(space: SearchSpace, layout: Layout) -> dict[tuple[Linear, ...], str]:
    """The space's choices on this decoder, as written, by the modules they stand for: groups it does not have are left
    out, and of equal choices the first stays.

    Raises SpaceError for a module name that the decoder does not have, and where nothing is left.
    """
    missing_groups = {"attention", "mlp"} - set(layout.groups)
    chosen: dict[tuple[Linear, ...], str] = {}
    for written in space.targets:
        names = split_targets(written)
        if not missing_groups.isdisjoint(names):
            continue
        try:
            chosen.setdefault(layout.targets(names), written)
        except AdapterError as error:
            raise SpaceError(f"Space {space.name!r} asks for {written}: {error.message}", error.remedy) from error
    if not chosen:
        raise SpaceError(
            f"{layout.family} has none of the targets of space {space.name!r} ({', '.join(space.targets)}).",
            f"Choose from {', '.join(layout.target_names)}.",
        )
    return chosen


def _allows(distribution: BaseDistribution, value: Any) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    return bool(distribution._contains(distribution.to_internal_repr(value)))
