"""A layout: where a decoder keeps its layers and the linear modules inside each of them."""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum
from typing import Literal

from pydantic import Field

from bandsearch.values.errors import AdapterError
from bandsearch.values.value import Value

# Attention modules whose output at a position concerns that position alone: queries and what the heads are joined by.
_POSITIONWISE = ("q_proj", "o_proj", "out_proj", "c_proj", "dense")
# Queries that a convolution over positions takes before they are used.
_CONVOLVED = ("linear_attn.q_proj",)


class Serving(StrEnum):
    """How vLLM serves LoRA adapters of a family."""

    NATIVE = "native"
    TRANSFORMERS = "transformers"
    NONE = "none"
    UNKNOWN = "unknown"


class Linear(Value):
    """One linear module of a decoder layer; `name` is its path inside the layer ("self_attn.q_proj").

    `attention` is all that mixes positions, be it by attention, a recurrence or a convolution. `layers`: those that
    have the module in this size, where not all have it; in others one of the same name may have another size.
    """

    name: str
    group: Literal["attention", "mlp"]
    in_features: int = Field(ge=1)
    out_features: int = Field(ge=1)
    layers: tuple[int, ...] = Field(default=(), exclude_if=lambda layers: not layers)

    @property
    def leaf(self) -> str:
        return self.name.rpartition(".")[2]

    @property
    def positionwise(self) -> bool:
        """Whether other positions of a sequence never see what the module puts out at one; false for keys and values.

        Also false for names that are not known."""
        return self.group == "mlp" or (self.leaf in _POSITIONWISE and self.name not in _CONVOLVED)

    def is_in(self, layer: int) -> bool:
        return not self.layers or layer in self.layers


class Layout(Value):
    """The `linears` that the decoder's layers hold, each once, in the order of the model's definition.

    `layers_path` leads from the model to its list of layers ("model.layers"). `transposed` is true where the weights
    are stored as (in, out) instead of (out, in), as GPT-2's Conv1D does.
    """

    family: str
    layers_path: str
    layer_count: int = Field(ge=1)
    hidden_size: int = Field(ge=1)
    linears: tuple[Linear, ...] = Field(min_length=1)
    transposed: bool = False
    serving: Serving = Serving.UNKNOWN

    @property
    def is_part(self) -> bool:
        """Whether the decoder is the text part of a model that takes images and the like too."""
        return "language_model" in self.layers_path.split(".")

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups a candidate may ask for: those with linear modules, and "all"."""
        return (*dict.fromkeys(linear.group for linear in self.linears), "all")

    @property
    def target_names(self) -> tuple[str, ...]:
        """Everything that may stand in a candidate's `targets`, shortest form."""
        return self.groups + tuple(dict.fromkeys(linear.leaf for linear in self.linears))

    def targets(self, names: tuple[str, ...]) -> tuple[Linear, ...]:
        """The modules that groups ("attention", "mlp", "all") and names ("q_proj", "self_attn.q_proj") stand for, in
        whichever layers they are.

        In the layout's order, each once. Raises AdapterError for a name that this decoder does not have.
        """
        for name in names:
            if name == "mlp" and name not in self.groups:
                raise AdapterError(
                    f"The feed-forward part of {self.family} has no plain linear modules; experts are not adapted.",
                    f"Choose from {', '.join(self.target_names)}.",
                )
            if not any(_is_meant(name, linear) for linear in self.linears):
                raise AdapterError(
                    f"{self.family} has no linear modules called {name!r} in its decoder layers.",
                    f"Choose from {', '.join(self.target_names)}.",
                )
        return tuple(linear for linear in self.linears if any(_is_meant(name, linear) for name in names))

    def linears_of(self, layer: int) -> tuple[Linear, ...]:
        return tuple(linear for linear in self.linears if linear.is_in(layer))

    def adapts(self, layers: Collection[int], names: tuple[str, ...]) -> bool:
        """Whether any of these layers has any of the modules that `names` stand for. Raises AdapterError as above."""
        return any(linear.is_in(layer) for linear in self.targets(names) for layer in layers)


def _is_meant(name: str, linear: Linear) -> bool:
    return name in ("all", linear.group, linear.name, linear.leaf)
