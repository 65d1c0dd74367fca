"""Batches: the order of examples from the seed alone, and padded tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor

from bandsearch.data.dataset import Encoded

# Batches among which sequences are sorted by length. More would pad less and mix less.
WINDOW = 16


@dataclass(frozen=True)
class Batch:
    """`input_ids`, `attention_mask` and `labels` of shape (rows, length); labels are -100 where nothing is learned.

    `labels[i, t]` is the token that position t predicts, so they are already shifted.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(self.input_ids.to(device), self.attention_mask.to(device), self.labels.to(device))


def collate(examples: Sequence[Encoded], pad_token_id: int) -> Batch:
    """Right-padded to the longest example."""
    length = max(len(example.input_ids) for example in examples)
    # In NumPy: by the row, tensors of torch took longer than a layer of a small model.
    ids = np.full((len(examples), length), pad_token_id)
    mask = np.zeros((len(examples), length), dtype=np.int64)
    labels = np.full((len(examples), length), -100)
    for row, example in enumerate(examples):
        count = len(example.input_ids)
        ids[row, :count] = example.input_ids
        mask[row, :count] = 1
        labels[row, : count - 1] = np.where(example.supervised[1:], ids[row, 1:count], -100)
    return Batch(torch.from_numpy(ids), torch.from_numpy(mask), torch.from_numpy(labels))


def tight_batches(lengths: Sequence[int], price: int, most_rows: int) -> list[list[int]]:
    """Places in `lengths` in batches that pad least, ascending by length, at most `most_rows` in each.

    Exact: the cheapest cut of the sorted sequences, where a batch costs its padded tokens and `price` tokens more.
    """
    order = sorted(range(len(lengths)), key=lambda place: lengths[place])
    # The cheapest way to cut off the first `end` sequences: its cost, and where its last batch begins.
    cuts = [(0, 0)]
    for end in range(1, len(order) + 1):
        longest = lengths[order[end - 1]]
        begins = range(max(0, end - most_rows), end)
        cuts.append(min((cuts[begin][0] + (end - begin) * longest + price, begin) for begin in begins))
    batches, end = [], len(order)
    while end:
        begin = cuts[end][1]
        batches.append(order[begin:end])
        end = begin
    return batches[::-1]


class Lengths(tuple[int, ...]):
    """Token counts of all training examples. Hashed once: it is part of every look into a cache below."""

    @cached_property
    def _hash(self) -> int:
        return super().__hash__()

    def __hash__(self) -> int:
        return self._hash


def examples_at(step: int, lengths: Sequence[int], batch_size: int, seed: int, window: int = WINDOW) -> list[int]:
    """The example indices of optimiser step `step`, for training examples of these token counts.

    Epochs are shuffled one after another without a gap between. Of this stream every `window` batches are sorted by
    length, cut into batches, and these shuffled, so that a batch pads little. A window spans at most a quarter of an
    epoch; `window=1` is the plain random order.
    """
    window = max(1, min(window, len(lengths) // (4 * batch_size)))
    number, place = divmod(step, window)
    known = lengths if isinstance(lengths, Lengths) else Lengths(lengths)
    return list(_window(number, known, batch_size, seed, window)[place])


@lru_cache(maxsize=64)
def _window(number: int, lengths: Lengths, batch_size: int, seed: int, window: int) -> tuple[tuple[int, ...], ...]:
    size = window * batch_size
    picked = []
    for position in range(number * size, (number + 1) * size):
        epoch, offset = divmod(position, len(lengths))
        picked.append(_epoch(len(lengths), seed, epoch)[offset])
    if window == 1:
        return (tuple(picked),)
    picked.sort(key=lambda index: lengths[index])
    batches = [tuple(picked[begin : begin + batch_size]) for begin in range(0, size, batch_size)]
    generator = torch.Generator().manual_seed(seed * 1_000_003 + number + 2**40)
    return tuple(batches[index] for index in torch.randperm(window, generator=generator).tolist())


@lru_cache(maxsize=64)
def _epoch(count: int, seed: int, epoch: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return tuple(torch.randperm(count, generator=generator).tolist())
