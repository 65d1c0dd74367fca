"""The engine's levers: what makes it faster than a plain loop without changing what it computes."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from bandsearch.values.errors import UsageError
from bandsearch.values.value import Value


class Levers(Value):
    """Each is on by default, is checked against a plain PEFT pass when the engine starts, and can be switched off."""

    prefix_cache: bool = Field(default=True, description="keep what the frozen layers below a band put out")
    packing: int | None = Field(default=None, ge=1, description="candidates per pass; None: measured, 1: off")
    supervised_head: bool = Field(default=True, description="vocabulary logits of supervised positions only, in chunks")
    supervised_last_layer: bool = Field(
        default=True, description="past keys and values, the last layer of supervised positions only"
    )
    unmasked_attention: bool = Field(default=True, description="padding is behind every sequence: causality hides it")
    length_grouping: bool = Field(default=True, description="batches of sequences of similar length")
    data_parallel: bool = Field(
        default=True, description="final trainings on several engines each, every batch shared out"
    )
    fast_linear: bool = Field(default=True, description="oneDNN for fp32 products on a CPU that it is faster on")
    liger: bool = Field(default=True, description="Liger's fused norms and gated products on a GPU, where installed")

    @classmethod
    def none(cls) -> Levers:
        """The plain loop."""
        return cls.without(tuple(cls.model_fields))

    @classmethod
    def without(cls, names: Sequence[str]) -> Levers:
        """All but these. Raises UsageError for a name that is none."""
        unknown = [name for name in names if name not in cls.model_fields]
        if unknown:
            raise UsageError(f"There is no lever {unknown[0]!r}.", f"Choose from {', '.join(cls.model_fields)}.")
        return cls.model_validate({name: 1 if name == "packing" else False for name in names})
