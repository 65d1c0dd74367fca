"""Liger's kernels in the engine. They need a GPU, so their formulas stand in for them here."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from simulated_device import DEVICE, simulated_cuda
from torch import Tensor, nn
from trainings import NARROW, SHORT

from bandsearch.engine import selfcheck
from bandsearch.engine.engine import Engine
from bandsearch.engine.setup import EngineSetup
from bandsearch.values.levers import Levers

Calls = dict[str, int]


class _Spent(torch.autograd.Function):
    """As Liger's gated products: the backward pass writes over what the forward one has kept."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, activation: Callable[[Tensor], Tensor], slip: float) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.activation, ctx.slip = activation, slip
        return activation(a) * b

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        a, b = ctx.saved_tensors
        with torch.enable_grad():
            leaves = a.clone().requires_grad_(), b.clone().requires_grad_()
            to_a, to_b = torch.autograd.grad(ctx.activation(leaves[0]) * leaves[1], leaves, gradient * ctx.slip)
        return a.copy_(to_a), b.copy_(to_b), None, None


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return _install(monkeypatch)


def _install(monkeypatch: pytest.MonkeyPatch, slip: float = 1.0) -> Calls:
    calls: Calls = {"norm": 0, "swiglu": 0, "geglu": 0}

    def norm(x: Tensor, w: Tensor, eps: float, offset: float, casting_mode: str, in_place: bool) -> Tensor:
        calls["norm"] += 1
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * (offset + w)

    def gated(name: str, activation: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
        def product(a: Tensor, b: Tensor) -> Tensor:
            calls[name] += 1
            return _Spent.apply(a, b, activation, slip)

        return product

    functional = ModuleType("liger_kernel.transformers.functional")
    functional.liger_rms_norm = norm
    functional.liger_swiglu = gated("swiglu", nn.functional.silu)
    functional.liger_geglu = gated("geglu", lambda a: nn.functional.gelu(a, approximate="tanh"))
    transformers = ModuleType("liger_kernel.transformers")
    transformers.functional = functional
    monkeypatch.setitem(sys.modules, "liger_kernel", ModuleType("liger_kernel"))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", transformers)
    monkeypatch.setitem(sys.modules, functional.__name__, functional)
    monkeypatch.setattr(selfcheck, "liger_is_usable", lambda _: True)
    return calls


def _readings(engine: Engine) -> list[float]:
    session = engine.admit(NARROW, SHORT)
    return [engine.advance(session, SHORT.steps).loss, *engine.train_losses(session)]


@pytest.mark.parametrize(
    ("family", "norms", "gated"),
    [
        ("llama", 2, "swiglu"),
        ("qwen3", 4, "swiglu"),
        ("olmo2", 4, "swiglu"),
        # Half of its layers have two norms more, and half one that is gated.
        ("qwen3_5_text", 3, "swiglu"),
        ("gemma2", 4, "geglu"),
        ("phi3", 2, None),
        ("gpt2", 0, None),
    ],
)
def test_each_module_goes_to_the_kernel_that_computes_it(
    load: Callable[[str], Engine], calls: Calls, family: str, norms: int, gated: str | None
) -> None:
    """`norms`: of a layer; one more stands behind the last."""
    engine = load(family)
    assert engine.notes == ()
    assert engine.levers.liger
    layers = engine.layout.layer_count
    calls.update(dict.fromkeys(calls, 0))
    with torch.no_grad():
        engine.model(torch.zeros(1, 3, dtype=torch.long))
    assert calls == {"norm": norms * layers + (norms > 0), "swiglu": 0, "geglu": 0} | ({gated: layers} if gated else {})
    found = _readings(engine)
    engine.close()
    calls.update(dict.fromkeys(calls, 0))
    plain = Engine(engine.model, engine.layout, engine.tokenizer, engine.dataset, levers=Levers.switched(off=["liger"]))
    assert found == pytest.approx(_readings(plain), abs=1e-5)
    assert set(calls.values()) == {0}


def test_a_kernel_whose_gradients_are_wrong_is_switched_off(
    load: Callable[[str], Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    _install(monkeypatch, slip=1.05)
    engine = load("llama")
    assert [note.split()[0] for note in engine.notes] == ["liger"]
    assert not engine.levers.liger
    assert engine.levers.prefix_cache


def test_kernels_are_tried_where_their_modules_are(
    setup_of: Callable[[str], EngineSetup], calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = setup_of("llama").model_copy(update={"device": str(DEVICE), "dtype": "bfloat16"})
    with simulated_cuda(monkeypatch):
        engine = Engine.load(there)
        assert engine.notes == ()
        assert engine.levers.liger
        assert engine.train_together([engine.admit(NARROW, SHORT)]) == {}
    assert calls["norm"]
    assert calls["swiglu"]


def test_without_a_gpu_it_is_off_and_nothing_is_said(load: Callable[[str], Engine]) -> None:
    engine = load("llama")
    assert not engine.levers.liger
    assert engine.notes == ()
