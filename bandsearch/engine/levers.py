"""The engine's levers: what makes it faster than a plain loop without changing what it computes."""

from __future__ import annotations

from pydantic import Field

from bandsearch.values.value import Value


class Levers(Value):
    """Each is on by default, is checked against a plain PEFT pass when the engine starts, and can be switched off."""

    prefix_cache: bool = Field(default=True, description="keep what the frozen layers below a band put out")
    packing: int | None = Field(default=None, ge=1, description="candidates per pass; None: measured, 1: off")
    supervised_head: bool = Field(default=True, description="vocabulary logits of supervised positions only, in chunks")
    length_grouping: bool = Field(default=True, description="batches of sequences of similar length")
    fast_linear: bool = Field(default=True, description="oneDNN for frozen fp32 products on a CPU it is faster on")
    compile: bool = Field(default=False, description="torch.compile of the decoder layers")

    @classmethod
    def none(cls) -> Levers:
        """The plain loop."""
        return cls(prefix_cache=False, packing=1, supervised_head=False, length_grouping=False, fast_linear=False)
