"""Every lever computes what the plain loop does, and one that does not is switched off."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from trainings import NARROW, SHORT

from bandsearch.engine import head, selfcheck, stage
from bandsearch.engine.adapted import AdaptedLinears, Member
from bandsearch.engine.batches import Batch
from bandsearch.engine.engine import Engine
from bandsearch.engine.failures import OutOfMemoryError
from bandsearch.engine.head import Head
from bandsearch.engine.kernels import onednn_is_faster, onednn_product
from bandsearch.engine.passes import Passes
from bandsearch.engine.setup import EngineSetup
from bandsearch.engine.stage import Decoder, Group
from bandsearch.engine.training import part_of
from bandsearch.models.aliases import Source, resolve
from bandsearch.values import layout
from bandsearch.values.errors import ModelError
from bandsearch.values.levers import Levers
from bandsearch.values.spec import DataSpec, ModelSpec

Build = Callable[[Levers], Engine]


@pytest.fixture
def build(load: Callable[[str], Engine]) -> Build:
    """Engines on one gemma2 model, which bounds its logits and attends in windows."""
    first = load("gemma2")
    first.close()
    built: list[Engine] = []

    def new(levers: Levers) -> Engine:
        while built:
            built.pop().close()
        built.append(Engine(first.model, first.layout, first.tokenizer, first.dataset, levers=levers))
        return built[-1]

    return new


def readings(engine: Engine) -> list[float]:
    session = engine.admit(NARROW, SHORT)
    return [engine.advance(session, SHORT.steps).loss, *engine.train_losses(session)]


@pytest.mark.parametrize(
    "lever", ["prefix_cache", "supervised_head", "supervised_last_layer", "unmasked_attention", "fast_linear"]
)
def test_a_lever_alone_computes_what_the_plain_loop_does(
    build: Build, lever: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selfcheck, "onednn_is_faster", lambda *_: True)
    expected = readings(build(Levers.none()))
    engine = build(Levers.none().model_copy(update={lever: True}))
    assert engine.notes == ()
    assert getattr(engine.levers, lever)
    assert readings(engine) == pytest.approx(expected, abs=1e-5)


def test_onednn_reads_the_base_in_its_own_order(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selfcheck, "onednn_is_faster", lambda *_: True)
    engine = build(Levers())
    plain = set[tuple[int, ...]]()

    def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if not weight.is_mkldnn:
            plain.add(tuple(weight.shape))
        return onednn_product(x, weight, bias)

    monkeypatch.setattr("bandsearch.engine.adapted.onednn_product", product)
    readings(engine)
    base = {(each.out_features, each.in_features) for each in engine.layout.linears}
    assert plain
    assert not plain & {*base, *((inner, outer) for outer, inner in base)}


def test_with_everything_off_nothing_is_cached_or_packed(build: Build) -> None:
    assert build(Levers.none()).levers == Levers.none()


def test_a_lever_that_computes_something_else_is_switched_off(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Head._losses
    monkeypatch.setattr(Head, "_losses", lambda self, hidden, labels: right(self, hidden, labels) * 1.01)
    engine = build(Levers())
    assert len(engine.notes) == 1
    assert "supervised_head" in engine.notes[0]
    assert not engine.levers.supervised_head
    assert engine.levers.prefix_cache
    monkeypatch.undo()
    assert readings(engine) == pytest.approx(
        readings(build(Levers.none().model_copy(update={"length_grouping": True}))), abs=1e-5
    )


def test_a_pack_that_mixes_its_candidates_up_is_taken_apart(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    right = AdaptedLinears.applied

    def mixed(self: AdaptedLinears, members: Sequence[Member], *rest: Any) -> Any:
        return right(self, members[::-1], *rest)

    monkeypatch.setattr(AdaptedLinears, "applied", mixed)
    engine = build(Levers())
    assert [note.split()[0] for note in engine.notes] == ["packing"]
    assert engine.levers.packing == 1
    assert engine.levers.prefix_cache
    expected = readings(build(Levers.none().model_copy(update={"length_grouping": True})))
    assert readings(build(Levers())) == pytest.approx(expected, abs=1e-5)


def test_a_product_that_is_not_pytorchs_is_not_used(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selfcheck, "onednn_is_faster", lambda *_: True)
    monkeypatch.setattr(
        "bandsearch.engine.adapted.onednn_product", lambda x, w, bias: 1.01 * onednn_product(x, w, bias)
    )
    engine = build(Levers())
    assert [note.split()[0] for note in engine.notes] == ["fast_linear"]
    assert not engine.levers.fast_linear
    assert engine.levers.prefix_cache


def test_the_last_layer_leaves_out_what_nobody_reads(build: Build) -> None:
    """All but keys and values see supervised tokens alone; the layer before sees every token."""
    engine = build(Levers())
    last, seen = engine.layout.layer_count - 1, dict[str, set[int]]()
    inner = engine._passes._linears._forward

    def counting(module: object, original: object, names: tuple[str, str], *rest: Any) -> object:
        seen.setdefault(names[0], set()).add(rest[1].shape[:-1].numel())
        return inner(module, original, names, *rest)

    engine._passes._linears._forward = counting
    rows = (0, 1)
    lengths = [len(engine.dataset.train[row].input_ids) for row in rows]
    supervised = sum(sum(engine.dataset.train[row].supervised[1:]) for row in rows)
    engine._passes.token_losses("train", [part_of(None, rows)])
    every = len(rows) * max(lengths)
    assert supervised < every
    for name, tokens in seen.items():
        if f"layers.{last}." in name:
            assert tokens == {every if ".k_proj" in name or ".v_proj" in name else supervised}, name
        elif "layers." in name:
            assert tokens == {every}, name


def test_a_module_taken_for_positionwise_that_is_not_is_noticed(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "_POSITIONWISE", ("q_proj", "k_proj", "v_proj", "o_proj"))
    engine = build(Levers())
    assert [note.split()[0] for note in engine.notes] == ["supervised_last_layer"]
    assert not engine.levers.supervised_last_layer
    assert engine.levers.supervised_head


def test_attention_that_only_a_mask_makes_causal_keeps_its_mask(load: Callable[[str], Engine]) -> None:
    first = load("llama")
    first.close()
    for module in first.model.modules():
        if hasattr(module, "is_causal"):
            module.is_causal = False
    engine = Engine(first.model, first.layout, first.tokenizer, first.dataset)
    assert "unmasked_attention" in engine.notes[0]
    assert not engine.levers.unmasked_attention


def test_keys_and_values_that_higher_layers_share_are_no_prefix(
    load: Callable[[str], Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the last layer of this one needs what another has computed, which a prefix below it would leave out."""
    first = load("gemma4_text")
    first.close()
    assert first.notes == ()
    assert first.levers.prefix_cache
    assert first._passes._decoder.highest_start == 1
    monkeypatch.setattr(stage, "_highest_start", lambda _, layers: layers - 1)
    engine = Engine(first.model, first.layout, first.tokenizer, first.dataset)
    assert [note.split()[0] for note in engine.notes] == ["prefix_cache"]


def test_what_a_refused_lever_has_cached_is_not_read(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Passes._forward

    def wrong(self: Passes, batch: Batch) -> Any:
        return right(self, batch if self._masked else replace(batch, input_ids=batch.input_ids.flip(1)))

    monkeypatch.setattr(Passes, "_forward", wrong)
    engine = build(Levers())
    assert [note.split()[0] for note in engine.notes] == ["unmasked_attention"]
    assert engine.levers.prefix_cache
    expected = readings(build(Levers.none().model_copy(update={"length_grouping": True})))
    assert readings(build(Levers())) == pytest.approx(expected, abs=1e-5)


def test_a_lever_that_breaks_is_switched_off(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise IndexError("no such layer")

    monkeypatch.setattr(Passes, "_compute", broken)
    engine = build(Levers())
    assert not engine.levers.prefix_cache
    assert engine.notes == ("prefix_cache fails (IndexError: no such layer) on this gemma2 model and is off",)


def test_levers_are_checked_on_fewer_examples_where_memory_does_not_do(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, tried = selfcheck._plain, list[int]()

    def scarce(*arguments: Any) -> Any:
        rows = arguments[-1]
        tried.append(len(rows))
        if len(rows) > room:
            raise torch.OutOfMemoryError
        return plain(*arguments)

    monkeypatch.setattr(selfcheck, "_plain", scarce)
    room = 1
    engine = build(Levers())
    assert tried[0] > 1
    assert tried[-1] == 1
    assert engine.notes == ()
    assert engine.levers.prefix_cache
    room = 0
    with pytest.raises(OutOfMemoryError, match="does not fit into memory"):
        build(Levers())


def test_what_is_compared_with_is_plain_after_a_try_that_ran_out_of_memory(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, ours, masked = selfcheck._plain, selfcheck._ours, list[bool]()

    def watched(model: Any, layout: Any, passes: Passes, *rest: Any) -> Any:
        masked.append(passes._masked)
        return plain(model, layout, passes, *rest)

    def scarce(passes: Any, candidates: Any, tensors: Any, rows: tuple[int, ...], **rest: Any) -> Any:
        if len(rows) > 1:
            raise torch.OutOfMemoryError
        return ours(passes, candidates, tensors, rows, **rest)

    monkeypatch.setattr(selfcheck, "_plain", watched)
    monkeypatch.setattr(selfcheck, "_ours", scarce)
    assert build(Levers()).notes == ()
    assert len(masked) > 2
    assert all(masked)


def test_levers_are_not_checked_on_many_long_examples(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = build(Levers.none())
    lengths = sorted(engine.dataset.train.lengths.tolist())
    many = selfcheck._rows(engine._passes, 10**6)
    # Every engine pays for the check at its start, and fp32 needs few tokens to tell a fault from rounding.
    in_fp32, in_bf16 = (
        len(selfcheck._rows(engine._passes, selfcheck.LEAST_SUPERVISED[dtype]))
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert in_fp32 < in_bf16
    monkeypatch.setattr(selfcheck, "MOST_TOKENS", 2 * lengths[1])
    assert len(selfcheck._rows(engine._passes, 10**6)) in (2, 3)
    assert len(many) > 3
    monkeypatch.setattr(selfcheck, "MOST_TOKENS", 0)
    assert len(selfcheck._rows(engine._passes, 10**6)) == 2


def test_the_cap_of_logits_is_found_under_a_wrapper_of_several_kinds_of_input() -> None:
    class Wrapped(nn.Module):
        config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(final_logit_softcapping=2.0))

        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 8)

        def get_output_embeddings(self) -> nn.Module:
            return self.head

    model = Wrapped()
    hidden, labels = 50 * torch.randn(5, 4), torch.arange(5)
    capped = nn.functional.cross_entropy(2 * torch.tanh(model.head(hidden) / 2), labels, reduction="none")
    assert torch.allclose(Head(model).token_losses(hidden, labels), capped)


def test_a_model_that_cannot_be_trained_faithfully_is_refused(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(scale: float, **rest: Any) -> Member:
        return Member(scale=2 * scale, **rest)

    monkeypatch.setattr("bandsearch.engine.passes.Member", twice)
    with pytest.raises(ModelError, match="does not compute what"):
        build(Levers())


def test_weights_that_hold_nan_are_called_that(build: Build) -> None:
    head = build(Levers()).model.get_output_embeddings().weight
    before = head[0, 0].item()
    head[0, 0] = float("nan")
    try:
        with pytest.raises(ModelError, match=r"NaN or infinite\. Its weights hold NaN.*--dtype fp32"):
            build(Levers())
    finally:
        head[0, 0] = before


def test_a_model_that_the_engine_breaks_on_is_refused_with_what_broke(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bandsearch.engine.passes.Member", lambda: None)
    with pytest.raises(ModelError, match=r"model the engine fails \(TypeError: .* unexpected keyword"):
        build(Levers())


@pytest.mark.parametrize("family", ["qwen2", "gemma2"])
def test_a_head_in_chunks_is_the_head(
    family: str, load: Callable[[str], Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load(family)
    hidden = torch.randn(50, engine.layout.hidden_size, requires_grad=True)
    labels = torch.randint(0, 300, (50,))
    whole = engine._passes._head.token_losses(hidden, labels)
    (expected,) = torch.autograd.grad(whole.sum(), hidden)
    monkeypatch.setattr(head, "MOST_LOGITS", 7 * 384)
    chunked = engine._passes._head.token_losses(hidden, labels)
    (found,) = torch.autograd.grad(chunked.sum(), hidden)
    assert torch.allclose(chunked, whole, atol=1e-6)
    assert torch.allclose(found, expected, atol=1e-6)


def test_a_training_whose_head_goes_in_chunks_is_the_same(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = readings(build(Levers.none()))
    monkeypatch.setattr(head, "MOST_LOGITS", 7 * 384)
    engine = build(Levers.none().model_copy(update={"supervised_head": True}))
    assert engine.notes == ()
    assert readings(engine) == pytest.approx(expected, abs=1e-5)


def test_chunks_that_are_not_the_head_switch_it_off(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "MOST_LOGITS", 7 * 384)
    monkeypatch.setattr(head, "checkpoint", lambda work, *each, **_: 1.01 * work(*each))
    engine = build(Levers())
    assert [note.split()[0] for note in engine.notes] == ["supervised_head"]


def test_onednn_multiplies_as_pytorch_does() -> None:
    x, weight, bias = torch.randn(30, 24), torch.randn(16, 24), torch.randn(16)
    assert torch.allclose(onednn_product(x, weight, bias), nn.functional.linear(x, weight, bias), atol=1e-5)
    # Any strides: what is stored transposed, and a product with a transposed matrix.
    assert torch.allclose(onednn_product(x, weight.T.contiguous().T), x @ weight.T, atol=1e-5)
    assert torch.allclose(onednn_product(x.T, x.T), x.T @ x, atol=1e-4)


def test_onednn_is_not_asked_for_where_it_is_used_anyway(load: Callable[[str], Engine]) -> None:
    engine = load("qwen2")
    engine.close()
    assert not onednn_is_faster(engine.model.to(torch.bfloat16), engine.layout)
    gpt2 = load("gpt2")
    assert not onednn_is_faster(gpt2.model, gpt2.layout)


def test_what_was_taken_over_is_given_back(load: Callable[[str], Engine]) -> None:
    engine = load("falcon")
    engine.close()
    assert all("forward" not in vars(module) for module in engine.model.modules())
    Decoder(engine.model, engine.layout).release()
    assert all("forward" not in vars(module) for module in engine.model.modules())


@pytest.mark.parametrize("task", ["swap", "two_step"])
def test_rounding_in_bfloat16_refuses_no_model_and_no_lever(
    task: str, kept_data: Callable[[Source, DataSpec], str]
) -> None:
    source = resolve(ModelSpec(name="demo"))
    setup = EngineSetup(
        source=source,
        data=kept_data(source, DataSpec(name=f"demo:{task}")),
        dtype="bfloat16",
        device="cpu",
        threads=1,
    )
    assert Engine.load(setup).notes == ()


def test_in_bfloat16_a_lever_that_computes_something_else_is_noticed(
    load: Callable[[str], Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load("qwen2")
    first.close()
    right = Decoder.running

    def running(self: Decoder, groups: Sequence[Group], **rest: Any) -> Any:
        """Another sequence's prefix."""
        wrong = [g if g.hidden is None else replace(g, hidden=g.hidden.roll(1, 0)) for g in groups]
        return right(self, wrong, **rest)

    monkeypatch.setattr(Decoder, "running", running)
    engine = Engine(first.model.to(torch.bfloat16), first.layout, first.tokenizer, first.dataset)
    assert [note.split()[0] for note in engine.notes] == ["prefix_cache"]
