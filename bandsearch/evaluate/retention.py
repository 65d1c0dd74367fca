"""What a model with an adapter has kept of its base: loss and divergence on texts of the base's own kind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bandsearch.data.dataset import Encoded
from bandsearch.engine.batches import collate
from bandsearch.engine.engine import Engine
from bandsearch.engine.measure import seconds_each
from bandsearch.engine.memory import in_halves
from bandsearch.values.retention import Retention

# Numbers in one tensor of log-probabilities, of which about four are held at a time; 16 Mi are 64 MiB in fp32. An
# accelerator is busy only with many.
MOST_LOGITS, ACCELERATOR_MOST_LOGITS = 16 * 2**20, 256 * 2**20
MOST_ROWS = 32
TIMED = 16


def measure_retention(model: Any, pad_token_id: int, texts: Sequence[Encoded]) -> Retention:
    """`model` against itself with its adapter switched off, on the supervised tokens of `texts`.

    `model` is a PEFT model, or a bare base, whose divergence is zero. Both passes see the same batch, so that an
    adapter that changes nothing diverges by exactly zero. `texts`: one or more. Raises OutOfMemoryError where one is
    too much.
    """
    losses: list[float] = []
    divergences: list[float] = []
    on_cpu = next(model.parameters()).device.type == "cpu"
    most = (MOST_LOGITS if on_cpu else ACCELERATOR_MOST_LOGITS) // model.config.get_text_config().vocab_size
    for batch in _batches(texts, most):
        for of_loss, of_divergence in in_halves(partial(_measured, model, pad_token_id), batch):
            losses += of_loss
            divergences += of_divergence
    return Retention(losses=tuple(losses), divergences=tuple(divergences))


def seconds_per_text(engine: Engine, texts: Sequence[Encoded]) -> float:
    """What a text costs, from a few on the bare base: with an adapter there are two passes. 0 without texts."""
    if not texts:
        return 0.0
    lengths = [len(text.input_ids) for text in texts]
    pad = engine.tokenizer.pad_token_id
    return 2 * seconds_each(lambda count: measure_retention(engine.model, pad, texts[:count]), lengths, TIMED)


def retention_of(engine: Engine, session: str | None, texts: Sequence[Encoded]) -> Retention:
    """As `measure_retention`, of a session's adapter, or of the bare base."""
    with engine.attached(session) as model:
        return measure_retention(model, engine.tokenizer.pad_token_id, texts)


def divergence_of(engine: Engine, session: str, texts: Sequence[Encoded]) -> float:
    """How far a session's adapter is from the base: mean over `texts`, nats per predicted token."""
    return retention_of(engine, session, texts).divergence


def _measured(model: Any, pad_token_id: int, texts: Sequence[Encoded]) -> tuple[list[float], list[float]]:
    """Mean loss and mean divergence of each text, nats per predicted token."""
    batch = collate(texts, pad_token_id).to(next(model.parameters()).device)
    keep = batch.labels >= 0
    counts = keep.sum(1)
    asked = batch.labels[keep]
    owner = torch.repeat_interleave(torch.arange(len(texts), device=counts.device), counts)

    def log_probabilities() -> Tensor:
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
        return nn.functional.log_softmax(logits[keep].float(), dim=-1)

    def means(of_tokens: Tensor) -> list[float]:
        sums = torch.zeros(len(texts), dtype=torch.float64).index_add_(0, owner.cpu(), of_tokens.double().cpu())
        return [float(mean) for mean in sums / counts.cpu()]

    with torch.no_grad():
        ours = log_probabilities()
        losses = means(-ours.gather(1, asked[:, None])[:, 0])
        if not hasattr(model, "disable_adapter"):
            return losses, [0.0] * len(texts)
        with model.disable_adapter():
            base = log_probabilities()
        # Rounding can take the divergence of two nearly equal distributions below zero; it has no negative values.
        divergences = (base.exp() * (base - ours)).sum(-1).clamp(min=0.0)
    return losses, means(divergences)


def _batches(texts: Sequence[Encoded], most_tokens: int) -> Iterator[list[Encoded]]:
    """Consecutive texts of at most so many tokens with their padding; a long one by itself may have more."""
    batch: list[Encoded] = []
    longest = 0
    for text in texts:
        longest = max(longest, len(text.input_ids))
        if batch and (len(batch) == MOST_ROWS or (len(batch) + 1) * longest > most_tokens):
            yield batch
            batch, longest = [], len(text.input_ids)
        batch.append(text)
    if batch:
        yield batch
