"""Memory that libraries under PyTorch lack: they say so in errors of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from bandsearch.engine.engine import Engine
from bandsearch.engine.memory import in_halves
from bandsearch.engine.passes import Part, Passes


@pytest.mark.parametrize(
    "words",
    [
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "Triton Error [CUDA]: out of memory",
        "CUDA error: out of memory",
    ],
)
def test_libraries_that_lack_memory_are_asked_for_less(words: str) -> None:
    def work(items: Sequence[int]) -> list[int]:
        if len(items) > 2:
            raise RuntimeError(words)
        return list(items)

    assert in_halves(work, range(7)) == [[0], [1, 2], [3, 4], [5, 6]]
    with pytest.raises(RuntimeError, match="illegal"):
        in_halves(lambda _: illegal(), [1, 2])


def illegal() -> None:
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def test_a_start_without_memory_for_its_kernels_blames_no_lever(
    load: Callable[[str], Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that ask too much of a library are taken fewer at a time."""
    usual, most = Passes.token_losses, 3

    def scarce(self: Passes, split: str, parts: Sequence[Part], **options: bool) -> list[torch.Tensor]:
        if len(parts[0].indices) > most:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
        return usual(self, split, parts, **options)

    monkeypatch.setattr(Passes, "token_losses", scarce)
    engine = load("qwen2")
    assert engine.notes == ()
    assert engine.levers.prefix_cache
