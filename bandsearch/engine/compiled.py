"""Norms, activations, gated products and rotary embeddings by kernels that torch.compile fuses them to, of any family.

Whole decoder layers are not compiled: what is adapted changes from pass to pass, and a compiler takes it for given.
These parts hold no linear module. Each is compiled once for all modules of its kind, for any number of tokens, before
the first step; from then on nothing is compiled, and what does not fit (a single token, tensors of which only some need
gradients, rotary embeddings of a part of each head) is computed as it was.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bandsearch.engine.forwards import Forward, Forwards, alike
from bandsearch.values.layout import Layout

# Rows and tokens of the passes for which is compiled: a tensor of one row has a layout of its own.
TRIED = ((3, 13), (1, 13))
ROTARY = "apply_rotary_pos_emb"


class CompiledModules:
    """Takes over the parts of the decoder and the norm behind it that nothing else has taken, while it is in use."""

    def __init__(self, model: PreTrainedModel, layout: Layout) -> None:
        self._model = model
        self._decoder: nn.Module = model.get_submodule(layout.layers_path.rpartition(".")[0])
        self._kernels: dict[object, _Kernel] = {}
        self._forwards = Forwards()

    def use(self, wanted: bool) -> None:
        """Raises whatever the compiler does where there is none, or where it fails; then nothing is in use."""
        self._forwards.release()
        if not wanted:
            return
        parts = list(_parts(self._decoder))
        new = {part.kind: _Kernel(part.function) for part in parts if part.kind not in self._kernels}
        if new:
            self._compile(parts, self._kernels | new)
            self._kernels |= new
        for part in parts:
            if (kernel := self._kernels[part.kind]).faithful:
                self._forwards.replace(part.module, partial(_fused, part, kernel.called))

    def __len__(self) -> int:
        """How many modules it has taken over."""
        return len(self._forwards)

    def _compile(self, parts: list[_Part], kernels: dict[object, _Kernel]) -> None:
        """Small passes of the model itself, since what a part is given is known to its model alone."""
        dtype, embeddings = self._model.dtype, self._model.get_input_embeddings()
        for part in parts:
            self._forwards.replace(part.module, partial(_tried, part, kernels[part.kind], dtype))
        seeds: list[Tensor] = []

        def needing_gradients(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            seeds.append(output.detach().requires_grad_(torch.is_grad_enabled()))
            return seeds[-1] * 1

        handle = embeddings.register_forward_hook(needing_gradients)
        try:
            with ExitStack() as settings:
                for each in _settings():
                    settings.enter_context(each)
                for rows, tokens in TRIED:
                    ids = torch.arange(rows * tokens, device=self._model.device).view(rows, tokens)
                    ids = ids % embeddings.weight.shape[0]
                    for graded in (True, False):
                        with torch.set_grad_enabled(graded):
                            mask = torch.ones_like(ids)
                            logits = self._model(input_ids=ids, attention_mask=mask, use_cache=False).logits
                        if graded:
                            torch.autograd.grad(logits.float().sum(), seeds, allow_unused=True)
                        seeds.clear()
        finally:
            handle.remove()
            self._forwards.release()


def _settings() -> Iterator[Any]:
    """Under which is compiled."""
    import torch._inductor.config
    import torch.fx.experimental._config

    # Sizes that happen to be equal in the passes tried need not be in others.
    yield torch.fx.experimental._config.patch(use_duck_shape=False)
    # Else a pool of processes starts in every engine, for a few small kernels.
    yield torch._inductor.config.patch(compile_threads=1)


class _Kernel:
    """A function of tensors as it was compiled. `faithful` until it has computed something else."""

    def __init__(self, function: Any) -> None:
        # By its code object it is known what is compiled: with one of its own it has the limit of these for itself.
        own = _copy(function, function.__globals__)
        self._compiled = torch.compile(own, dynamic=True)
        self._run = torch._dynamo.run(self._compiled)
        self.faithful = True

    def compiling(self, *args: Any, **kwargs: Any) -> Any:
        return self._called(self._compiled, *args, **kwargs)

    def called(self, *args: Any, **kwargs: Any) -> Any:
        return self._called(self._run, *args, **kwargs)

    @staticmethod
    def _called(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        # The base is frozen: below the lowest adapter nothing needs gradients, and one compilation serves both.
        needed = any(isinstance(each, Tensor) and each.requires_grad for each in args)
        with torch.set_grad_enabled(needed and torch.is_grad_enabled()):
            return function(*args, **kwargs)


@dataclass(frozen=True)
class _Part:
    """A module, the function in it that is to be compiled (one for all modules of a kind), and its forward around a
    kernel for that."""

    module: nn.Module
    kind: object
    function: Callable[..., Any]
    around: Callable[[Callable[..., Any]], Forward]


def _fused(part: _Part, kernel: Callable[..., Any], _: Forward) -> Forward:
    return part.around(kernel)


def _tried(part: _Part, kernel: _Kernel, dtype: torch.dtype, original: Forward) -> Forward:
    fused = part.around(kernel.compiling)

    def forward(*args: Any, **kwargs: Any) -> Any:
        expected = original(*args, **kwargs)
        if not kernel.faithful:
            return expected
        found = fused(*args, **kwargs)
        kernel.faithful = _same(found, expected, dtype)
        return found if kernel.faithful else expected

    return forward


def _same(found: Any, expected: Any, dtype: torch.dtype) -> bool:
    if isinstance(expected, tuple):
        return len(found) == len(expected) and all(map(partial(_same, dtype=dtype), found, expected))
    return alike(found, expected, dtype) if isinstance(expected, Tensor) else found is expected


def _parts(decoder: nn.Module) -> Iterator[_Part]:
    free = [module for module in decoder.modules() if "forward" not in vars(module)]
    activations = set()
    for module in free:
        if _is_gated(module):
            # Part of the product. Two that were compiled cannot stand in each other.
            activations.add(module.act_fn)
            yield _Part(module, ("gated", type(module)), _gate, partial(_gated, module))
        elif (rotary := _rotary_of(module)) is not None:
            yield _Part(module, rotary, rotary, partial(_rotated, module))
    for module in free:
        if _is_small(module) and module not in activations:
            kind = (type(module), tuple(tuple(each.shape) for each in module.parameters()))
            yield _Part(module, kind, _forward_of(module), partial(_rowwise, module))


def _is_gated(module: nn.Module) -> bool:
    names = ("gate_proj", "up_proj", "down_proj", "act_fn")
    return all(isinstance(getattr(module, name, None), nn.Module) for name in names) and _takes_one(module)


def _is_small(module: nn.Module) -> bool:
    """A norm or an activation written in Python: PyTorch's own are single kernels."""
    if type(module).__module__.startswith("torch.") or next(module.children(), None) is not None:
        return False
    vectors = all(each.ndim == 1 and len(each) > 1 for each in module.parameters())
    return vectors and _takes_one(module) and isinstance(_forward_of(module), FunctionType)


def _forward_of(module: nn.Module) -> Any:
    return type(module).forward


def _takes_one(module: nn.Module) -> bool:
    return len(inspect.signature(_forward_of(module)).parameters) == 2


def _rotary_of(module: nn.Module) -> FunctionType | None:
    forward = _forward_of(module)
    if not isinstance(forward, FunctionType) or ROTARY not in forward.__code__.co_names:
        return None
    function = forward.__globals__.get(ROTARY)
    return function if isinstance(function, FunctionType) else None


def _rowwise(module: nn.Module, kernel: Callable[..., Tensor]) -> Forward:
    def forward(x: Tensor) -> Tensor:
        return kernel(module, _flat(x)).view(x.shape)

    return forward


def _gate(activation: nn.Module, a: Tensor, b: Tensor) -> Tensor:
    y: Tensor = activation(a) * b
    return y


def _gated(module: nn.Module, kernel: Callable[..., Tensor]) -> Forward:
    def forward(x: Tensor) -> Tensor:
        a, b = module.gate_proj(x), module.up_proj(x)
        y: Tensor = module.down_proj(kernel(module.act_fn, _flat(a), _flat(b)).view(a.shape))
        return y

    return forward


def _rotated(module: nn.Module, kernel: Callable[..., Any]) -> Forward:
    """The module's own forward, which finds `kernel` by the function's name: other models of its file keep theirs."""
    forward = _forward_of(module)

    def rotary(*args: Any, **kwargs: Any) -> Any:
        return kernel(*(_heads(each) if isinstance(each, Tensor) else each for each in args), **kwargs)

    return MethodType(_copy(forward, {**forward.__globals__, ROTARY: rotary}), module)


def _flat(x: Tensor) -> Tensor:
    """(tokens, width). No view: of views the compiler asks what they are views of, which differs with the adapters."""
    flat: Tensor = torch.ops.aten._unsafe_view(x.contiguous(), (x.numel() // x.shape[-1], x.shape[-1]))
    return flat


def _heads(x: Tensor) -> Tensor:
    """As it is, and a view of (rows, tokens, heads, size) whatever it was a view of, where it is one of that."""
    if x.ndim != 4 or not (before := x.transpose(1, 2)).is_contiguous():
        return x
    own: Tensor = torch.ops.aten._unsafe_view(before, before.shape)
    return own.transpose(1, 2)


def _copy(function: Any, names: dict[str, Any]) -> FunctionType:
    """With a code object of its own, and `names` as what it finds globally."""
    code = function.__code__.replace()
    copy = FunctionType(code, names, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy
