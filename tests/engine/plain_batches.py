"""Batches as a textbook makes them, for comparison."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bandsearch.data.dataset import Encoded


def padded(examples: Sequence[Encoded], pad: int) -> dict[str, torch.Tensor]:
    """What a causal language model of transformers takes; it shifts the labels itself."""
    length = max(len(example.input_ids) for example in examples)
    rows, masks, labels = [], [], []
    for example in examples:
        ids, learned = example.input_ids.tolist(), example.supervised
        room = length - len(ids)
        rows.append(ids + [pad] * room)
        masks.append([1] * len(ids) + [0] * room)
        labels.append([token if wanted else -100 for token, wanted in zip(ids, learned, strict=True)] + [-100] * room)
    return {
        "input_ids": torch.tensor(rows),
        "attention_mask": torch.tensor(masks),
        "labels": torch.tensor(labels),
    }


def random_order(count: int, wanted: int, seed: int) -> list[int]:
    """Epochs shuffled one after another."""
    order: list[int] = []
    while len(order) < wanted:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + len(order) // count)
        order += torch.randperm(count, generator=generator).tolist()
    return order[:wanted]
