"""The output layer on supervised positions only, in chunks: the one cost that grows with the vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# Logits held at once, in numbers; 64 Mi are 256 MiB in fp32.
MOST_LOGITS = 64 * 2**20


class Head:
    """Takes the hidden states from in front of a model's output layer, and turns them into token losses."""

    def __init__(self, model: nn.Module) -> None:
        self._layer: nn.Module = model.get_output_embeddings()
        # Gemma bounds its logits after the output layer.
        self._cap: float | None = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        self._vocabulary = int(self._layer.weight.shape[0])
        self._taken: list[Tensor] | None = None
        self._handle = self._layer.register_forward_pre_hook(self._take)

    def release(self) -> None:
        self._handle.remove()

    @contextmanager
    def taking(self) -> Iterator[list[Tensor]]:
        """Inside, a forward of the model leaves its hidden states, (rows, length, hidden size), in the yielded list,
        and its logits mean nothing.
        """
        self._taken = []
        try:
            yield self._taken
        finally:
            self._taken = None

    def token_losses(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Negative log-likelihood of `labels` (tokens,) given `hidden` (tokens, hidden size); fp32, shape (tokens,)."""
        rows = max(1, MOST_LOGITS // self._vocabulary)
        if len(labels) <= rows:
            return self._losses(hidden, labels)
        parts = zip(hidden.split(rows), labels.split(rows), strict=True)
        return torch.cat([checkpoint(self._losses, states, part, use_reentrant=False) for states, part in parts])

    def _losses(self, hidden: Tensor, labels: Tensor) -> Tensor:
        logits = self._layer(hidden)
        if self._cap is not None:
            logits = torch.tanh(logits / self._cap) * self._cap
        return nn.functional.cross_entropy(logits.float(), labels, reduction="none")

    def _take(self, _: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self._taken is None:
            return None
        self._taken.append(inputs[0])
        return (inputs[0][:1, :1], *inputs[1:])
