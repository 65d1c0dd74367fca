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
from bandsearch.engine.memory import in_halves

ROWS = 16


def mean_loss(model: PreTrainedModel, examples: Sequence[Encoded], rows: int = ROWS) -> float:
    """Mean loss in nats per supervised token over all `examples`, without gradients. Out of memory halves the rows of a
    pass; raises OutOfMemoryError where one is too much."""
    ascending = sorted(examples, key=lambda example: len(example.input_ids))
    total, tokens = 0.0, 0
    with torch.no_grad():
        for begin in range(0, len(ascending), rows):
            for losses in in_halves(partial(token_losses, model), ascending[begin : begin + rows]):
                total += float(losses.double().sum())
                tokens += len(losses)
    return total / tokens


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
