"""Batches: the order of examples from the seed alone, and padded tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bandsearch.data.dataset import Encoded


@dataclass(frozen=True)
class Batch:
    """`input_ids`, `attention_mask` and `labels` of shape (rows, length); labels are -100 where nothing is learned.

    `labels[i, t]` is the token that position t predicts, so they are already shifted.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor

    @property
    def supervised_tokens(self) -> int:
        return int((self.labels >= 0).sum())


def collate(examples: Sequence[Encoded], pad_token_id: int) -> Batch:
    """Right-padded to the longest example."""
    length = max(len(example.input_ids) for example in examples)
    input_ids = torch.full((len(examples), length), pad_token_id)
    mask = torch.zeros((len(examples), length), dtype=torch.long)
    labels = torch.full((len(examples), length), -100)
    for row, example in enumerate(examples):
        ids = torch.tensor(example.input_ids)
        input_ids[row, : len(ids)] = ids
        mask[row, : len(ids)] = 1
        learned = torch.tensor(example.supervised)[1:]
        labels[row, : len(ids) - 1][learned] = ids[1:][learned]
    return Batch(input_ids, mask, labels)


def examples_at(step: int, count: int, batch_size: int, seed: int) -> list[int]:
    """The example indices of optimiser step `step`: epochs are shuffled one after another, without a gap between."""
    picked = []
    for position in range(step * batch_size, (step + 1) * batch_size):
        epoch, offset = divmod(position, count)
        picked.append(_epoch(count, seed, epoch)[offset])
    return picked


_cache: dict[tuple[int, int, int], list[int]] = {}


def _epoch(count: int, seed: int, epoch: int) -> list[int]:
    key = (count, seed, epoch)
    if key not in _cache:
        if len(_cache) > 64:
            _cache.clear()
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        _cache[key] = torch.randperm(count, generator=generator).tolist()
    return _cache[key]
