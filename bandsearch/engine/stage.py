"""Running a part of the decoder: rows that join at the layer where their cached states end, and stop where asked.

The replay idea in its general form: below the layer at which a row joins, its layers are identities, and there its
hidden states are put in place. Layer indices, rotary tables, sliding windows and embedding scaling stay untouched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from bandsearch.engine.forwards import Forwards
from bandsearch.values.layout import Layout

# In what a layer has to run where it runs a second time.
Again = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class Group:
    """`rows` consecutive rows of a batch that join at layer `start`.

    `hidden`, (rows, length, hidden size), is what layer `start - 1` put out for them; None at layer 0, where the
    embeddings are.
    """

    start: int
    rows: int
    hidden: Tensor | None = None


class _Pass:
    def __init__(self, groups: Sequence[Group], stop: int, heads: int, again: Again | None) -> None:
        self.groups, self.stop, self._heads, self.again = tuple(groups), stop, heads, again
        self.total = sum(group.rows for group in groups)
        self.reached: Tensor | None = None

    def active(self, layer: int) -> int:
        """How many rows, from the first on, pass through `layer`."""
        return sum(group.rows for group in self.groups if group.start <= layer)

    def joined(self, layer: int, hidden: Tensor) -> Tensor:
        arriving = [group for group in self.groups if group.start == layer]
        if not arriving:
            return hidden
        before = self.active(layer - 1)
        parts = [hidden[:before]] if before else []
        offset = before
        for group in arriving:
            rows = hidden[offset : offset + group.rows] if group.hidden is None else group.hidden
            parts.append(rows)
            offset += group.rows
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def narrowed(self, value: Any, rows: int) -> Any:
        """What belongs to the first `rows` rows of a layer's other arguments: masks, positions, rotary tables."""
        if rows == self.total:
            return value
        if isinstance(value, Tensor):
            # Bloom gives its positions to every head of every row.
            for each in (1, self._heads):
                if value.ndim > 1 and value.shape[0] == self.total * each:
                    return value[: rows * each]
            return value
        if isinstance(value, tuple):
            return tuple(self.narrowed(item, rows) for item in value)
        return value


class Decoder:
    """A model whose layers can be run in part. Outside `running` it is untouched in everything it computes."""

    def __init__(self, model: PreTrainedModel, layout: Layout) -> None:
        self._pass: _Pass | None = None
        self._heads: int = getattr(model.config.get_text_config(), "num_attention_heads", 1)
        self.layers: nn.ModuleList = model.get_submodule(layout.layers_path)
        self.highest_start = _highest_start(model, len(self.layers))
        self._tuples = _puts_out_tuples(model, self.layers[0])
        self._forwards = Forwards()
        for index, layer in enumerate(self.layers):
            self._forwards.replace(layer, partial(self._staged, index))

    def release(self) -> None:
        """Give the layers their own forward back."""
        self._forwards.release()

    @contextmanager
    def running(self, groups: Sequence[Group], stop: int | None = None, again: Again | None = None) -> Iterator[_Pass]:
        """Inside, a forward of the model runs `groups`, ascending by start, none above `highest_start`, up to layer
        `stop` (excluded).

        The rows of its input are the groups' rows, in order. Where `stop` is given, `reached` of the yielded pass is
        what layer `stop - 1` put out, and the logits mean nothing. Where `again` is given, no more of a layer is kept
        for gradients than what goes into it, and when they are computed it runs a second time, inside `again()`.
        """
        self._pass = _Pass(groups, len(self.layers) if stop is None else stop, self._heads, again)
        try:
            yield self._pass
        finally:
            self._pass = None

    def _staged(self, index: int, original: Any) -> Any:
        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            at = self._pass
            if at is None:
                return original(hidden_states, *args, **kwargs)
            rows = at.active(index)
            if rows == 0 or index >= at.stop:
                return (hidden_states, None) if self._tuples else hidden_states
            hidden_states = at.joined(index, hidden_states)
            run = original if at.again is None else recomputed(original, at.again)
            output = run(
                hidden_states,
                *at.narrowed(args, rows),
                **{name: at.narrowed(value, rows) for name, value in kwargs.items()},
            )
            hidden = output[0] if isinstance(output, tuple) else output
            if index == at.stop - 1:
                at.reached = hidden
            return output

        return forward


def recomputed(layer: Callable[..., Any], again: Again = nullcontext) -> Callable[..., Any]:
    """`layer`, keeping no more for gradients than what goes into it; for them it runs again, inside `again()`."""
    # Random numbers need no keeping: in evaluation mode none are drawn.
    return partial(
        checkpoint,
        layer,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (nullcontext(), again()),
    )


def _highest_start(model: nn.Module, layers: int) -> int:
    """The highest layer that rows may join at: keys and values that higher layers share are computed from there on."""
    modes = getattr(model.config.get_text_config(), "kv_sharing_modes", [])
    return modes.index("store") if "reuse" in modes else layers - 1


def _puts_out_tuples(model: nn.Module, layer: nn.Module) -> bool:
    seen: list[bool] = []
    handle = layer.register_forward_hook(lambda _, __, output: seen.append(isinstance(output, tuple)))
    device = next(model.parameters()).device
    try:
        with torch.no_grad():
            model(input_ids=torch.zeros(1, 2, dtype=torch.long, device=device), use_cache=False)
    finally:
        handle.remove()
    return seen[0]
