"""Forward passes of several sessions over one base: from example indices to token losses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bandsearch.data.dataset import Dataset, Examples
from bandsearch.engine.adapted import AdaptedLinears, Member
from bandsearch.engine.batches import Batch, collate
from bandsearch.engine.compiled import CompiledModules
from bandsearch.engine.head import Head
from bandsearch.engine.liger import FusedModules
from bandsearch.engine.prefix import PrefixCache
from bandsearch.engine.stage import Decoder, Group
from bandsearch.values.layout import Layout
from bandsearch.values.levers import Levers

# Sequences whose prefixes an accelerator computes in one pass. A CPU takes one at a time: then a state depends on its
# sequence alone, to the last bit, whoever computed it first.
PREFIX_ROWS = 16


@dataclass(frozen=True)
class Part:
    """The examples `indices` of a split, under the adapter of `factors` (none: the bare base), scaled by `scale`."""

    indices: tuple[int, ...]
    factors: Mapping[str, Tensor]
    scale: float
    start: int


class Passes:
    """Holds the model by its layers, its linear modules, its output layer and what can be fused. Every lever is off
    until `use`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layout: Layout,
        dataset: Dataset,
        pad_token_id: int,
        cache: PrefixCache | None,
    ) -> None:
        self._model, self.dataset, self.pad_token_id = model, dataset, pad_token_id
        self.device = model.device
        self._decoder = Decoder(model, layout)
        self._linears = AdaptedLinears(model, layout)
        self._head = Head(model)
        self._fused = FusedModules(model, layout)
        self._compiled = CompiledModules(model, layout)
        self._own_cache = cache
        # Whether layers may run twice, which is asked for where memory lacks.
        self.recomputes = True
        self.use(Levers.none())

    @property
    def layer_count(self) -> int:
        return len(self._decoder.layers)

    def use(self, levers: Levers) -> None:
        """Switch levers on and off. `packing` is the caller's: it decides how many parts are given at a time."""
        self._cache: PrefixCache | None = self._own_cache if levers.prefix_cache else None
        self._only_supervised = levers.supervised_head
        self._narrow_last_layer = levers.supervised_last_layer
        self._masked = not levers.unmasked_attention
        self._linears.use_onednn(levers.fast_linear)
        # What Liger has a kernel for is its own; the rest is compiled.
        self._compiled.use(False)
        self._fused.use(levers.liger)
        self._compiled.use(levers.compile)

    @property
    def compiled(self) -> int:
        """How many modules run as they were compiled."""
        return len(self._compiled)

    @contextmanager
    def trying(self, cache: PrefixCache | None) -> Iterator[None]:
        """Inside, `cache` takes the place of its own, which must hold nothing that a lever got wrong."""
        own, self._own_cache = self._own_cache, cache
        try:
            yield
        finally:
            self._own_cache = own

    def release(self) -> None:
        """Take everything off the model."""
        self.use(Levers.none())
        for part in (self._decoder, self._linears, self._head):
            part.release()

    def token_losses(self, split: str, parts: Sequence[Part], *, recompute: bool = False) -> list[Tensor]:
        """Per part, the negative log-likelihood of its supervised tokens, row by row; fp32, each (tokens,).

        Parts of one pass have equal numbers of rows. Gradients reach every part's factors; with `recompute` no more is
        kept for them than what goes into each decoder layer (activation checkpointing).
        """
        order = sorted(range(len(parts)), key=lambda index: self._start(parts[index]))
        ascending = [parts[index] for index in order]
        examples: Examples = getattr(self.dataset, split)
        batch = collate([examples[index] for part in ascending for index in part.indices], self.pad_token_id)
        length = batch.input_ids.shape[1]
        groups = [self._group(split, part, length) for part in ascending]
        # Found on the CPU, where the labels are: an accelerator would have to be waited for.
        keep = batch.labels >= 0
        counts = [int(rows.sum()) for rows in keep.split([group.rows for group in groups])]
        members = [
            Member(factors=part.factors, scale=part.scale, rows=group.rows, supervised=count)
            for part, group, count in zip(ascending, groups, counts, strict=True)
        ]
        supervised = self._sent(keep.flatten().nonzero().squeeze(1))
        labels = self._sent(batch.labels[keep])
        narrow = supervised if self._narrow_last_layer else None
        applied = partial(self._linears.applied, members, length, narrow)
        with self._decoder.running(groups, again=applied if recompute else None), applied():
            if self._only_supervised:
                with self._head.taking() as taken:
                    self._forward(batch)
                losses = self._head.token_losses(taken[0].flatten(0, 1).index_select(0, supervised), labels)
            else:
                logits = self._forward(batch).flatten(0, 1).index_select(0, supervised)
                losses = nn.functional.cross_entropy(logits.float(), labels, reduction="none")
        found = dict(zip(order, losses.split(counts), strict=True))
        return [found[index] for index in range(len(parts))]

    def _start(self, part: Part) -> int:
        return 0 if self._cache is None else min(part.start, self._decoder.highest_start)

    def _group(self, split: str, part: Part, length: int) -> Group:
        start = self._start(part)
        if start == 0:
            return Group(start=0, rows=len(part.indices))
        states = self._prefixes(split, part.indices, start)
        return Group(start=start, rows=len(part.indices), hidden=_padded(states, length, self.device))

    def _prefixes(self, split: str, indices: Sequence[int], boundary: int) -> list[Tensor]:
        """What layer `boundary - 1` puts out for these sequences, each (tokens, hidden size); computed if missing."""
        assert self._cache is not None
        found = {index: self._cache.get(split, index, boundary) for index in indices}
        missing = [index for index, states in found.items() if states is None]
        rows = 1 if self.device.type == "cpu" and self._cache.keeps else PREFIX_ROWS
        by_boundary: dict[int, list[int]] = {}
        for index in missing:
            by_boundary.setdefault(self._cache.boundary_below(split, index, boundary), []).append(index)
        for below, needed in by_boundary.items():
            for begin in range(0, len(needed), rows):
                some = needed[begin : begin + rows]
                whole = self._compute(split, some, below, boundary)
                # At once: an accelerator is waited for at every copy.
                stored = whole.to("cpu")
                for row, index in enumerate(some):
                    length = int(getattr(self.dataset, split).lengths[index])
                    found[index] = whole[row, :length]
                    self._cache.put(split, index, boundary, stored[row, :length])
        return [states for index in indices if (states := found[index]) is not None]

    def _compute(self, split: str, indices: Sequence[int], below: int, boundary: int) -> Tensor:
        """(rows, length, hidden size), padded."""
        assert self._cache is not None
        examples = [getattr(self.dataset, split)[index] for index in indices]
        batch = collate(examples, self.pad_token_id)
        hidden = None
        if below:
            known = [states for i in indices if (states := self._cache.get(split, i, below)) is not None]
            hidden = _padded(known, batch.input_ids.shape[1], self.device)
        group = Group(start=below, rows=len(indices), hidden=hidden)
        with torch.no_grad(), self._decoder.running([group], stop=boundary) as at, self._head.taking():
            self._forward(batch)
        assert at.reached is not None
        return at.reached

    def _forward(self, batch: Batch) -> Any:
        # Without a mask SDPA takes its causal kernel, which skips what lies ahead instead of masking it.
        mask = self._sent(batch.attention_mask) if self._masked else None
        return self._model(input_ids=self._sent(batch.input_ids), attention_mask=mask, use_cache=False).logits

    def _sent(self, tensor: Tensor) -> Tensor:
        # Without waiting for what the accelerator has still to do. `tensor` may be forgotten at once: what is not in
        # pinned memory is copied from there before this returns.
        return tensor.to(self.device, non_blocking=True)


def _padded(states: Sequence[Tensor], length: int, device: torch.device) -> Tensor:
    """(rows, length, hidden size), zeros behind every sequence's end: padding is masked out, whatever it holds."""
    padded = torch.zeros(len(states), length, states[0].shape[1], dtype=states[0].dtype, device=device)
    for row, each in enumerate(states):
        padded[row, : len(each)].copy_(each, non_blocking=True)
    return padded
