"""A candidate: one adapter somebody could train."""

from __future__ import annotations

import hashlib
import itertools
import math
from enum import StrEnum

from pydantic import Field, field_validator

from bandsearch.values.band import Band
from bandsearch.values.value import Value


class Method(StrEnum):
    """How the low-rank update is scaled: LoRA alpha/r (arXiv 2106.09685), rsLoRA alpha/sqrt(r) (arXiv 2312.03732)."""

    LORA = "lora"
    RSLORA = "rslora"


class Init(StrEnum):
    """Initialisations that PEFT offers and every vLLM accepts; the update B @ A starts at zero.

    B itself starts at zero too, except for `orthogonal`, which needs an even rank.
    """

    KAIMING = "kaiming"
    GAUSSIAN = "gaussian"
    ORTHOGONAL = "orthogonal"


# Rates nearer than this are one rate.
RATES_APART = 1.5


def rates_differ(one: float, other: float) -> bool:
    """Whether two learning rates are far enough from each other to be two."""
    return max(one / other, other / one) >= RATES_APART


class Role(StrEnum):
    """Why a candidate is in the search: proposed by the search, or a baseline that it has to beat."""

    SEARCHED = "searched"
    FULL_DEPTH = "full_depth"
    MID_BLOCK = "mid_block"
    LAST_K = "last_k"
    RANDOM_BAND = "random_band"

    @property
    def is_baseline(self) -> bool:
        return self is not Role.SEARCHED


class Candidate(Value):
    """Where an adapter sits, how large it is and how fast it learns.

    `bands` are disjoint and ascending. `targets` are group names ("attention", "mlp", "all") or the names of
    linear modules inside one decoder layer ("q_proj"). The update of a weight is `scale * B @ A`.
    """

    bands: tuple[Band, ...] = Field(min_length=1)
    rank: int = Field(ge=1)
    alpha: float = Field(gt=0)
    targets: tuple[str, ...] = Field(min_length=1)
    learning_rate: float = Field(gt=0, lt=math.inf)
    method: Method = Method.LORA
    init: Init = Init.KAIMING

    @field_validator("bands")
    @classmethod
    def _ascending(cls, bands: tuple[Band, ...]) -> tuple[Band, ...]:
        for left, right in itertools.pairwise(bands):
            if right.start < left.stop:
                raise ValueError(f"bands {left} and {right} overlap or are out of order")
        return bands

    @classmethod
    def full_depth(
        cls, layer_count: int, *, rank: int, alpha: float, learning_rate: float, targets: tuple[str, ...] = ("all",)
    ) -> Candidate:
        """LoRA on all layers."""
        bands = (Band.full(layer_count),)
        return cls(bands=bands, rank=rank, alpha=alpha, targets=targets, learning_rate=learning_rate)

    @property
    def scale(self) -> float:
        """The factor on B @ A: alpha/r for LoRA, alpha/sqrt(r) for rsLoRA."""
        return self.alpha / (math.sqrt(self.rank) if self.method is Method.RSLORA else self.rank)

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(layer for band in self.bands for layer in band.layers)

    @property
    def identity(self) -> str:
        """Twelve hex digits that name this candidate: equal values, equal name, on every machine."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]

    @property
    def form(self) -> tuple[object, ...]:
        """Everything but the learning rate."""
        return self.bands, self.rank, self.alpha, self.targets, self.method, self.init

    def resembles(self, other: Candidate) -> bool:
        """Whether they differ by a learning rate that is not far away, or not at all."""
        return not rates_differ(self.learning_rate, other.learning_rate) and self.form == other.form

    def __str__(self) -> str:
        bands = "+".join(map(str, self.bands))
        return f"{bands} r{self.rank} {'+'.join(self.targets)} lr {self.learning_rate:.2g} {self.method}"
