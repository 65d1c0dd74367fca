"""Packed weights: copies of the base's matrices in the order in which oneDNN reads them.

A plain matrix it brings into that order in every call, which with few rows is much of the product. The results are the
same to the last bit but for those of very few rows, which differ by rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bandsearch.engine.machine import usable_cores, usable_memory

# Of the memory that is there for each core: an engine may have no more than one.
MEMORY_SHARE = 0.25
# What oneDNN chooses the order for; another number of rows may be multiplied as well.
ROWS = 256

_Place = tuple[int, torch.Size, tuple[int, ...]]


class PackedWeights:
    """Of fp32 matrices on the CPU, each and its transpose; of none where they would take too much memory."""

    def __init__(self, weights: Sequence[Tensor]) -> None:
        packable = [each for each in weights if each.dtype == torch.float32 and each.device.type == "cpu"]
        known = {_place(each): each.detach() for each in packable}
        size = sum(2 * each.nbytes for each in known.values())
        self._packed: dict[_Place, tuple[Tensor, int, Tensor]] = {}
        if size <= MEMORY_SHARE * usable_memory() / usable_cores():
            for weight in known.values():
                for each in (weight, weight.T):
                    packed = torch.ops.mkldnn._reorder_linear_weight(each.contiguous(), ROWS)
                    self._packed[_place(each)] = (each, each._version, packed)

    def __len__(self) -> int:
        return len(self._packed)

    def of(self, weight: Tensor) -> Tensor:
        """The packed copy of a matrix; itself where there is none, or it was changed since."""
        known, version, packed = self._packed.get(_place(weight), (weight, -1, weight))
        return packed if known._version == version else weight


def _place(weight: Tensor) -> _Place:
    # A transpose is another tensor whenever it is asked for.
    return weight.data_ptr(), weight.shape, weight.stride()
