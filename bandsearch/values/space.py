"""A search space: what may vary between candidates. Written as strict YAML, see `search_spaces/`."""

from __future__ import annotations

import math
import re

from pydantic import Field, field_validator, model_validator

from bandsearch.values.candidate import Init, Method
from bandsearch.values.value import Value

# The largest rank that vLLM serves.
LARGEST_RANK = 512
ALPHA_RULE = re.compile(r"(?P<factor>\d+(?:\.\d+)?)r")
TARGETS = re.compile(r"[A-Za-z_][\w.]*(?:\+[A-Za-z_][\w.]*)*")


class BandSpace(Value):
    """Bands are sampled as a start and a width, both as fractions of depth, so that one file fits every model.

    `count` bands per candidate (disjoint); `snap` layers: starts and widths are multiples of it. With `split` a single
    band may also be in two pieces, `width` layers together; more bands are in pieces already.
    """

    count: int = Field(default=1, ge=1, le=4)
    split: bool = True
    start: tuple[float, float] = (0.0, 1.0)
    width: tuple[float, float] = (0.1, 1.0)
    snap: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _inside_the_model(self) -> BandSpace:
        if not 0 <= self.start[0] <= self.start[1] <= 1 or self.start[0] == 1:
            raise ValueError(f"start {self.start} is not a range of depth fractions from 0 to 1")
        if not 0 < self.width[0] <= self.width[1] <= 1:
            raise ValueError(f"width {self.width} is not a range of depth fractions above 0 and up to 1")
        needed, room = self.count * self.width[0], 1 - self.start[0]
        if needed > room + 1e-9:
            raise ValueError(
                f"{self.count} band(s) of at least {self.width[0]:g} of the depth do not fit between the lowest start, "
                f"{self.start[0]:g}, and the last layer"
            )
        return self


class RateSpace(Value):
    """Learning rates, log-uniform. `None` means the end of the span found by the probe's range test."""

    low: float | None = Field(default=None, gt=0, lt=math.inf)
    high: float | None = Field(default=None, gt=0, lt=math.inf)

    @model_validator(mode="after")
    def _ascending(self) -> RateSpace:
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"the lowest rate, {self.low:g}, is above the highest, {self.high:g}")
        return self


class SearchSpace(Value):
    """`alpha` is a number (constant alpha: the best rate is then about rank-invariant) or a multiple of the rank
    written as "1r", "2r". `targets` lists the choices, each a group ("attention", "mlp", "all") or "q_proj+v_proj".
    """

    name: str
    description: str = ""
    bands: BandSpace = BandSpace()
    ranks: tuple[int, ...] = Field(default=(4, 8, 16, 32), min_length=1)
    alpha: float | str = 32.0
    targets: tuple[str, ...] = Field(default=("attention", "mlp", "all"), min_length=1)
    learning_rate: RateSpace = RateSpace()
    methods: tuple[Method, ...] = Field(default=(Method.LORA,), min_length=1)
    inits: tuple[Init, ...] = Field(default=(Init.KAIMING,), min_length=1)

    @field_validator("ranks")
    @classmethod
    def _servable(cls, ranks: tuple[int, ...]) -> tuple[int, ...]:
        if wrong := [rank for rank in ranks if not 1 <= rank <= LARGEST_RANK]:
            raise ValueError(f"rank {wrong[0]} is not between 1 and {LARGEST_RANK}")
        return ranks

    @model_validator(mode="after")
    def _even_ranks(self) -> SearchSpace:
        """Orthogonal initialisation shares the rows of a rotation out over both factors."""
        if Init.ORTHOGONAL in self.inits and (odd := [rank for rank in self.ranks if rank % 2]):
            raise ValueError(f"the initialisation orthogonal needs even ranks, found {odd[0]}")
        return self

    @field_validator("alpha")
    @classmethod
    def _positive(cls, alpha: float | str) -> float | str:
        rule = ALPHA_RULE.fullmatch(alpha) if isinstance(alpha, str) else None
        value = float(rule["factor"]) if rule else alpha
        if isinstance(value, str) or not 0 < value < math.inf:
            raise ValueError(f'alpha {alpha!r} is neither a number above 0 nor a multiple of the rank such as "2r"')
        return alpha

    @field_validator("targets")
    @classmethod
    def _named(cls, targets: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := [choice for choice in targets if not TARGETS.fullmatch(choice)]:
            raise ValueError(f"target {wrong[0]!r} is neither a group nor module names joined by +")
        return targets

    def alpha_at(self, rank: int) -> float:
        """LoRA's alpha of an adapter of this rank."""
        return float(self.alpha.removesuffix("r")) * rank if isinstance(self.alpha, str) else float(self.alpha)
