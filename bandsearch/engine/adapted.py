"""Linear modules under the adapters of several candidates at once, over one shared base product.

PEFT refuses batches of mixed adapters in training, so this layer is ours. The factors are PEFT's own, by its names.
Each candidate's product runs on its own rows, so ranks, targets and bands may differ and nothing is padded; forward and
backward are one autograd node, with every small product in the orientation that is fast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from bandsearch.adapters.lora import tensor_names
from bandsearch.engine.forwards import Forwards
from bandsearch.engine.kernels import Product, onednn_product, usual_product
from bandsearch.engine.memory import within_memory
from bandsearch.engine.packed import PackedWeights
from bandsearch.values.layout import Layout


@dataclass(frozen=True)
class Member:
    """One candidate of a pack: `rows` consecutive rows of the batch are its own, with `supervised` tokens in all.

    `factors` by saved name: A (rank, inputs) and B (outputs, rank); the update of a weight is `scale` * B @ A.
    """

    factors: Mapping[str, Tensor]
    scale: float
    rows: int
    supervised: int = 0


@dataclass(frozen=True)
class _Span:
    begin: int
    end: int
    scale: float


class _Adapted(torch.autograd.Function):  # type: ignore[misc]
    """x (tokens, inputs) -> x W^T + bias, and on each span of tokens scale * x A^T B^T more. W is frozen.

    Without W only the spans' part.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        outputs: int,
        product: Product,
        spans: tuple[_Span, ...],
        *factors: Tensor,
    ) -> Tensor:
        y = x.new_zeros(len(x), outputs) if weight is None else product(x, weight, bias)
        cast = [factor.to(x.dtype) for factor in factors]
        reduced = []
        for span, a, b in zip(spans, cast[::2], cast[1::2], strict=True):
            h = product(x[span.begin : span.end], a, None)
            y[span.begin : span.end].addmm_(h, b.T, alpha=span.scale)
            reduced.append(h)
        ctx.product, ctx.spans, ctx.has_weight = product, spans, weight is not None
        ctx.types = [factor.dtype for factor in factors]
        ctx.save_for_backward(*([] if weight is None else [weight]), *([x] if spans else []), *cast, *reduced)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        saved, product, count = list(ctx.saved_tensors), ctx.product, len(ctx.spans)
        weight = saved.pop(0) if ctx.has_weight else None
        x = saved.pop(0) if count else gradient
        cast, reduced = saved[: 2 * count], saved[2 * count :]
        gradient = gradient.contiguous()
        to_x: Tensor | None = None
        if ctx.needs_input_grad[0]:
            inputs = cast[0].shape[1] if weight is None else weight.shape[1]
            to_x = gradient.new_zeros(len(gradient), inputs) if weight is None else product(gradient, weight.T, None)
        to_factors: list[Tensor] = []
        for index, span in enumerate(ctx.spans):
            a, b, h = cast[2 * index], cast[2 * index + 1], reduced[index]
            here = slice(span.begin, span.end)
            to_h = product(gradient[here], b.T, None).mul_(span.scale)
            if to_x is not None:
                to_x[here].addmm_(to_h, a)
            to_a = product(to_h.T, x[here].T, None)
            to_b = product(h.T, gradient[here].T, None).T * span.scale
            to_factors += [to_a.to(ctx.types[2 * index]), to_b.to(ctx.types[2 * index + 1])]
        return (to_x, None, None, None, None, None, *to_factors)


class AdaptedLinears:
    """Takes over a model's linear modules in its decoder layers, and its output layer, until `release`."""

    def __init__(self, model: PreTrainedModel, layout: Layout) -> None:
        self._product: Product | None = None
        self._packed: PackedWeights | None = None
        self._modules: list[nn.Module] = []
        self._members: tuple[Member, ...] = ()
        self._length = 0
        self._supervised: Tensor | None = None
        self._forwards = Forwards()
        last = layout.layer_count - 1
        for layer in range(layout.layer_count):
            for linear in layout.linears_of(layer):
                path = f"{layout.layers_path}.{layer}.{linear.name}"
                narrow = layer == last and linear.positionwise
                self._take(path, model.get_submodule(path), linear.out_features, narrow=narrow)
        head = model.get_output_embeddings()
        if type(head) is nn.Linear:
            self._take("", head, head.out_features)

    def use_onednn(self, wanted: bool) -> None:
        """Compute every product of plain fp32 linear modules by oneDNN, or again as PyTorch does."""
        self._product = self._onednn_product if wanted else None
        if not wanted:
            self._packed = None
        elif self._packed is None:
            matrices = [_matrix(module)[0] for module in self._modules]
            # Without room for copies the matrices themselves are read.
            self._packed = within_memory(lambda: PackedWeights([each for each in matrices if each is not None]))

    def _onednn_product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return onednn_product(x, weight if self._packed is None else self._packed.of(weight), bias)

    def release(self) -> None:
        self._forwards.release()

    @contextmanager
    def applied(self, members: Sequence[Member], length: int, supervised: Tensor | None = None) -> Iterator[None]:
        """Inside, rows of `length` tokens pass through their member's adapter. A batch holds the members' rows in this
        order; a module may see the first rows alone, if all that is adapted in it is among them.

        `supervised`, ascending indices of tokens of the flattened batch: nothing else of the model's output is read. So
        in the last layer what no other position sees is zero elsewhere.
        """
        self._members, self._length, self._supervised = tuple(members), length, supervised
        try:
            yield
        finally:
            self._members, self._supervised = (), None

    def _take(self, path: str, module: nn.Module, outputs: int, *, narrow: bool = False) -> None:
        names = tensor_names(path)
        self._modules.append(module)
        self._forwards.replace(module, lambda original: partial(self._called, module, original, names, outputs, narrow))

    def _called(
        self,
        module: nn.Module,
        original: Callable[..., Tensor],
        names: tuple[str, str],
        outputs: int,
        narrow: bool,
        x: Tensor,
        *args: Any,
    ) -> Tensor:
        at = self._supervised if narrow else None
        if at is None:
            tokens = [member.rows * self._length for member in self._members]
            return self._forward(module, original, names, outputs, x, tokens, *args)
        flat = x.reshape(-1, x.shape[-1])
        tokens = [member.supervised for member in self._members]
        y = self._forward(module, original, names, outputs, flat.index_select(0, at), tokens, *args)
        return y.new_zeros(len(flat), outputs).index_copy(0, at, y).view(*x.shape[:-1], outputs)

    def _forward(
        self,
        module: nn.Module,
        original: Callable[..., Tensor],
        names: tuple[str, str],
        outputs: int,
        x: Tensor,
        tokens: Sequence[int],
        *args: Any,
    ) -> Tensor:
        """`tokens`: how many of x, one member after the other, are each member's."""
        spans, factors, begin = [], [], 0
        for member, count in zip(self._members, tokens, strict=True):
            if names[0] in member.factors:
                spans.append(_Span(begin, begin + count, member.scale))
                factors += [member.factors[name] for name in names]
            begin += count
        if not spans and self._product is None:
            return original(x, *args)
        flat = x.reshape(-1, x.shape[-1])
        weight, bias = _matrix(module)
        product = self._product or usual_product
        adapted: Tensor = _Adapted.apply(flat, weight, bias, outputs, product, tuple(spans), *factors)
        adapted = adapted.view(*x.shape[:-1], outputs)
        return adapted if weight is not None else original(x, *args) + adapted


def _matrix(module: nn.Module) -> tuple[Tensor | None, Tensor | None]:
    """W (outputs, inputs) and bias of a plain linear module; (None, None) for one that keeps them otherwise."""
    if type(module) is nn.Linear:
        return module.weight, module.bias
    if type(module) is Conv1D:
        return module.weight.T, module.bias
    return None, None
