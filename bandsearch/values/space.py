"""A search space: what may vary between candidates. Written as strict YAML, see `search_spaces/`."""

from __future__ import annotations

from pydantic import Field

from bandsearch.values.candidate import Init, Method
from bandsearch.values.value import Value


class BandSpace(Value):
    """Bands are sampled as a start and a width, both as fractions of depth, so that one file fits every model.

    `count` bands per candidate (disjoint); `snap` layers: starts and widths are multiples of it.
    """

    count: int = Field(default=1, ge=1, le=4)
    start: tuple[float, float] = (0.0, 1.0)
    width: tuple[float, float] = (0.1, 1.0)
    snap: int = Field(default=1, ge=1)


class RateSpace(Value):
    """Learning rates, log-uniform. `None` means the span found by the probe's range test."""

    low: float | None = Field(default=None, gt=0)
    high: float | None = Field(default=None, gt=0)


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
