"""What the probe found out about a model and a data set: the content of `profile.json`."""

from __future__ import annotations

from pydantic import Field

from bandsearch.values.band import Band
from bandsearch.values.value import Value


class ModuleSensitivity(Value):
    """Gradient sensitivity of one linear module at the initial LoRA factors."""

    layer: int
    module: str
    raw: float = Field(description="Frobenius norm of dL/dB at the initial factors")
    normalised: float = Field(description="raw, divided by what removes scale of input, size and depth; see probe")


class LayerViews(Value):
    """The three views of arXiv 2604.11838 on one layer, base against briefly tuned model."""

    layer: int
    entropy_base: float
    entropy_tuned: float
    effective_rank_base: float
    effective_rank_tuned: float
    cka: float
    cosine: float
    curvature_base: float
    curvature_tuned: float
    relative_change: float = Field(description="mean over modules of ||dW||_F / ||W||_F")


class RatePoint(Value):
    learning_rate: float
    loss: float | None = Field(description="training loss reached, None where it diverged")


class RateRange(Value):
    """The learning-rate range test: the span worth searching on this model and data."""

    low: float = Field(gt=0)
    best: float = Field(gt=0)
    high: float = Field(gt=0)
    points: tuple[RatePoint, ...] = ()


class BandProposal(Value):
    """A band the search should try first, and the reason in words."""

    band: Band
    score: float
    reason: str


class SensitivityProfile(Value):
    model: str
    layer_count: int = Field(ge=1)
    modules: tuple[ModuleSensitivity, ...]
    views: tuple[LayerViews, ...]
    layer_scores: tuple[float, ...] = Field(description="one score per layer, they sum to 1")
    rate_range: RateRange
    proposals: tuple[BandProposal, ...]
    seconds: float = Field(ge=0)

    @property
    def ranking(self) -> tuple[int, ...]:
        """Layers, most sensitive first."""
        return tuple(sorted(range(self.layer_count), key=lambda layer: -self.layer_scores[layer]))
