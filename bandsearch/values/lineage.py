"""The lineage of an adapter: the base and the data that it comes from. What its model card says beside the figures."""

from __future__ import annotations

from pydantic import Field

from bandsearch.values.layout import Layout
from bandsearch.values.source import Source
from bandsearch.values.value import Value


class Lineage(Value):
    """`template` says how examples were written as text, None by the model's own chat template."""

    source: Source
    layout: Layout
    data: str = Field(description="name of the data set")
    template: str | None = None
    dtype: str = Field(default="", description="of the base's numbers, such as bfloat16")
    is_nf4: bool = Field(default=False, description="whether its weights were kept in 4 bits")
    commit: str | None = Field(default=None, description="of a hub model, as it was loaded")

    @property
    def precision(self) -> str:
        return f"nf4, computed in {self.dtype}" if self.is_nf4 else self.dtype
