"""Products by packed weights: the same but for rounding, and no copies where there is no room for them."""

from __future__ import annotations

import pytest
import torch

from bandsearch.engine import packed
from bandsearch.engine.kernels import onednn_product
from bandsearch.engine.packed import PackedWeights

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")


@pytest.mark.parametrize("rows", [1, 5, 300])
def test_products_are_the_same_but_for_rounding(rows: int) -> None:
    weight, bias = torch.randn(48, 80), torch.randn(48)
    weights = PackedWeights([weight, weight])
    x, gradient = torch.randn(rows, 80), torch.randn(rows, 48)
    assert len(weights) == 2
    assert weights.of(weight).is_mkldnn
    assert weights.of(weight.T).is_mkldnn
    forward, backward = onednn_product(x, weights.of(weight), bias), onednn_product(gradient, weights.of(weight.T))
    assert torch.allclose(forward, onednn_product(x, weight, bias), atol=1e-5)
    assert torch.allclose(backward, onednn_product(gradient, weight.T), atol=1e-5)


def test_a_matrix_that_was_changed_is_read_itself() -> None:
    weight, view = torch.randn(48, 80), torch.randn(80, 48).T
    weights = PackedWeights([weight, view])
    weight.mul_(2)
    assert weights.of(weight) is weight
    assert weights.of(view).is_mkldnn
    other = torch.randn(48, 80)
    assert weights.of(other) is other


def test_without_memory_for_two_copies_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(32, 32)
    for cores, memory, count in ((1, 8 * weight.nbytes, 2), (1, 8 * weight.nbytes - 1, 0), (2, 8 * weight.nbytes, 0)):
        monkeypatch.setattr(packed, "usable_memory", lambda memory=memory: memory)
        monkeypatch.setattr(packed, "usable_cores", lambda cores=cores: cores)
        assert len(PackedWeights([weight])) == count


def test_other_types_are_left_as_they_are() -> None:
    assert len(PackedWeights([torch.randn(8, 8, dtype=torch.bfloat16)])) == 0
