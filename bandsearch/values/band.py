"""A band: a contiguous range of decoder layers."""

from __future__ import annotations

import math

from pydantic import Field, model_validator

from bandsearch.values.value import Value


class Band(Value):
    """Layers `start` to `stop - 1` of a decoder, counted from 0 at the embedding (half open, like a slice)."""

    start: int = Field(ge=0)
    stop: int = Field(ge=1)

    @model_validator(mode="after")
    def _not_empty(self) -> Band:
        if self.start >= self.stop:
            raise ValueError(f"band [{self.start}, {self.stop}) is empty: start must be below stop")
        return self

    @property
    def width(self) -> int:
        return self.stop - self.start

    @property
    def layers(self) -> range:
        return range(self.start, self.stop)

    def __str__(self) -> str:
        """As people count layers: both ends are in it."""
        return f"{self.start}" if self.width == 1 else f"{self.start}-{self.stop - 1}"

    @classmethod
    def full(cls, layer_count: int) -> Band:
        return cls(start=0, stop=layer_count)

    @classmethod
    def last(cls, width: int, layer_count: int) -> Band:
        return cls(start=layer_count - width, stop=layer_count)

    @classmethod
    def middle(cls, layer_count: int) -> Band:
        """The 20–80 % of depth that arXiv 2604.11838 found to stay stable under fine-tuning."""
        return cls.between(0.2, 0.8, layer_count)

    @classmethod
    def between(cls, low: float, high: float, layer_count: int) -> Band:
        """The band from depth fraction `low` to `high`, each end rounded to the nearest layer, never empty."""
        start = min(math.floor(low * layer_count + 0.5), layer_count - 1)
        return cls(start=start, stop=max(start + 1, math.floor(high * layer_count + 0.5)))

    def rescaled(self, layers: int, to: int) -> Band:
        """This band of a decoder of `layers` layers at the same relative depth in one of `to`: each end rounded to the
        nearest layer, and where that leaves nothing the one layer in which the middle lies.
        """
        start, stop = ((2 * end * to + layers) // (2 * layers) for end in (self.start, self.stop))
        if start >= stop:
            start = (self.start + self.stop) * to // (2 * layers)
            stop = start + 1
        return Band(start=start, stop=stop)
