"""A session: one candidate under training, with everything needed to set it aside and go on later."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from bandsearch.values.candidate import Candidate
from bandsearch.values.errors import BandsearchError
from bandsearch.values.fidelity import Fidelity


class DivergedError(BandsearchError):
    """The loss or a gradient became NaN or infinite."""


class OutOfMemoryError(BandsearchError):
    """Not even one example at a time fits."""


@dataclass
class Session:
    """`tensors` and `moments` are what a detached session keeps; while it is attached they are stale."""

    name: str
    candidate: Candidate
    fidelity: Fidelity
    step: int = 0
    seconds: float = 0.0
    tensors: dict[str, Tensor] | None = None
    moments: dict[str, Tensor] = field(default_factory=dict)
    train_losses: list[float] = field(default_factory=list)
