"""The engine's levers: what makes it faster than a plain loop without changing what it computes."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from bandsearch.values.errors import UsageError
from bandsearch.values.value import Value


class Levers(Value):
    """Each is checked against a plain PEFT pass when the engine starts, and can be switched off. All are on by default
    but `compile`, which takes time before it saves any.
    """

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
    compile: bool = Field(
        default=False, description="norms, activations and rotary embeddings as torch.compile fuses them"
    )

    @classmethod
    def none(cls) -> Levers:
        """The plain loop."""
        return cls.switched(off=tuple(cls.model_fields))

    @classmethod
    def switched(cls, *, on: Sequence[str] = (), off: Sequence[str] = ()) -> Levers:
        """The usual ones and those `on`, without those `off`. Raises UsageError for a name that is none or is both."""
        for name in (*on, *off):
            if name not in cls.model_fields:
                raise UsageError(f"There is no lever {name!r}.", f"Choose from {', '.join(cls.model_fields)}.")
        if both := sorted(set(on) & set(off)):
            raise UsageError(f"The lever {both[0]} is to be on and off.", "Name it once.")
        chosen: dict[str, int | bool] = {name: True for name in on if name != "packing"}
        return cls.model_validate(chosen | {name: 1 if name == "packing" else False for name in off})
