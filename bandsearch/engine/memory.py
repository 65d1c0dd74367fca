"""Work that may ask for more memory than there is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import torch

from bandsearch.engine.failures import LESS_MEMORY, NO_MEMORY, OutOfMemoryError

Item = TypeVar("Item")
Result = TypeVar("Result")


def within_memory(work: Callable[[], Result]) -> Result | None:
    """What `work` returns; None where memory does not do. All that it has made is gone then, as a second try needs: a
    graph that an error or a caller still refers to keeps its memory."""
    try:
        return work()
    except RuntimeError as error:
        if not lacks_memory(error):
            raise
        return None


def given_room(work: Callable[[], Result], what: str) -> Result:
    """What `work` returns, tried again once the device has back what is only kept for later. Raises OutOfMemoryError,
    which says that there is no room for `what`."""
    found = within_memory(work)
    if found is None:
        torch.cuda.empty_cache()
        found = within_memory(work)
    if found is None:
        raise OutOfMemoryError(f"{what} does not fit into memory beside the model.", LESS_MEMORY)
    return found


def lacks_memory(error: Exception) -> bool:
    """Whether it says so, as also do libraries that take theirs past PyTorch."""
    told = isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)
    return told or isinstance(error, torch.OutOfMemoryError)


def too_much(tokens: int | None = None) -> OutOfMemoryError:
    """What to raise where one example at a time, of so many tokens, is too much."""
    long = "" if tokens is None else f", of {tokens:,} tokens,"
    return OutOfMemoryError(f"One example{long} does not fit into memory.", LESS_MEMORY)


def in_halves(work: Callable[[Sequence[Item]], Result], items: Sequence[Item]) -> list[Result]:
    """What `work` returns for `items`, or, where memory does not do, for each half of them, and so on, in their order.
    Raises OutOfMemoryError where one is too much."""
    found = within_memory(partial(work, items))
    if found is not None:
        return [found]
    torch.cuda.empty_cache()
    if len(items) == 1:
        raise too_much()
    half = len(items) // 2
    return [*in_halves(work, items[:half]), *in_halves(work, items[half:])]
