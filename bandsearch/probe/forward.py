"""Losses of single batches on a model as it stands, for measurements that are no training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bandsearch.data.dataset import Encoded
from bandsearch.engine.batches import collate
from bandsearch.engine.head import MOST_LOGITS
from bandsearch.engine.memory import in_halves

ROWS = 16


def mean_loss(model: PreTrainedModel, examples: Sequence[Encoded]) -> float:
    """Mean loss in nats per supervised token over all `examples`, as `losses_of_each`."""
    total, tokens = 0.0, 0
    for _, losses in losses_of_each(model, examples):
        total += float(losses.double().sum())
        tokens += len(losses)
    return total / tokens


def losses_of_each(model: PreTrainedModel, examples: Sequence[Encoded]) -> Iterator[tuple[int, Tensor]]:
    """Index and loss in nats of every supervised token, shape (supervised tokens,), of all `examples`, the short ones
    first, without gradients. Out of memory halves the rows of a pass; raises OutOfMemoryError where one is too much."""
    most = MOST_LOGITS // model.get_input_embeddings().weight.shape[0]
    for some in _passes(examples, most):
        with torch.no_grad():
            parts = in_halves(partial(token_losses, model), [examples[index] for index in some])
        counts = [examples[index].learned for index in some]
        yield from zip(some, torch.cat(parts).split(counts), strict=True)


def _passes(examples: Sequence[Encoded], most: int) -> Iterator[list[int]]:
    """Indices of similar length that go through together: at most ROWS, of so many supervised tokens if they are more
    than one."""
    some: list[int] = []
    for index in sorted(range(len(examples)), key=lambda index: len(examples[index].input_ids)):
        learned = sum(examples[each].learned for each in (*some, index))
        if some and (len(some) == ROWS or learned > most):
            yield some
            some = []
        some.append(index)
    if some:
        yield some


def token_losses(model: PreTrainedModel, examples: Sequence[Encoded]) -> Tensor:
    """Loss in nats of every supervised token of `examples` as one right-padded batch; shape (supervised tokens,)."""
    # Padding is masked out, whatever token it is.
    batch = collate(examples, pad_token_id=0).to(model.get_input_embeddings().weight.device)
    predicts = batch.labels >= 0
    with _head_reads_only(model, predicts):
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
    return nn.functional.cross_entropy(logits[0].float(), batch.labels[predicts], reduction="none")


@contextmanager
def _head_reads_only(model: PreTrainedModel, positions: Tensor) -> Iterator[None]:
    """The output layer sees the positions of (rows, length) that are true, as one row: logits are (1, count, words)."""

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0][positions].unsqueeze(0), *inputs[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(keep)
    try:
        yield
    finally:
        handle.remove()
