"""Work that may ask for more memory than there is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")


def within_memory(work: Callable[[], Result]) -> Result | None:
    """What `work` returns; None where memory does not do. All that it has made is gone then, as a second try needs: a
    graph that an error or a caller still refers to keeps its memory."""
    try:
        return work()
    except torch.OutOfMemoryError:
        return None
