"""The measures of the three views, against plain definitions in numpy and values known by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bandsearch.probe.views import (
    curvature,
    effective_rank,
    linear_cka,
    matrix_entropy,
    mean_cosine,
    update_norm,
)

shapes = st.tuples(st.integers(2, 12), st.integers(2, 12), st.integers(0, 2**16))


def matrix(rows: int, columns: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, columns))


def rotation(size: int, seed: int) -> np.ndarray:
    return np.linalg.qr(matrix(size, size, seed))[0]


def tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))


@given(shapes)
@settings(max_examples=40, deadline=None)
def test_entropy_and_effective_rank_agree_with_the_singular_values(shape: tuple[int, int, int]) -> None:
    z = matrix(*shape)
    singular = np.linalg.svd(z, compute_uv=False)
    p, q = singular**2 / (singular**2).sum(), singular / singular.sum()
    assert matrix_entropy(tensor(z)) == pytest.approx(-(p * np.log(p)).sum() / np.log(min(z.shape)), abs=1e-9)
    assert effective_rank(tensor(z)) == pytest.approx(np.exp(-(q * np.log(q)).sum()), rel=1e-6)


@given(shapes)
@settings(max_examples=40, deadline=None)
def test_cka_agrees_with_its_kernel_form(shape: tuple[int, int, int]) -> None:
    rows, columns, seed = shape
    x, y = matrix(rows, columns, seed), matrix(rows, columns + 3, seed + 1)
    centring = np.eye(rows) - 1 / rows
    first, second = (centring @ side @ side.T @ centring for side in (x, y))
    expected = np.trace(first @ second) / math.sqrt(np.trace(first @ first) * np.trace(second @ second))
    assert linear_cka(tensor(x), tensor(y)) == pytest.approx(expected, rel=1e-9)


@given(shapes)
@settings(max_examples=40, deadline=None)
def test_rotation_shift_and_scale_do_not_change_cka(shape: tuple[int, int, int]) -> None:
    rows, columns, seed = shape
    x = matrix(rows, columns, seed)
    moved = 3.5 * x @ rotation(columns, seed + 1) + matrix(1, columns, seed + 2)
    assert linear_cka(tensor(x), tensor(x)) == pytest.approx(1)
    assert linear_cka(tensor(x), tensor(moved)) == pytest.approx(1)


@given(shapes)
@settings(max_examples=40, deadline=None)
def test_measures_stay_in_their_ranges_and_do_not_depend_on_the_basis(shape: tuple[int, int, int]) -> None:
    rows, columns, seed = shape
    z = matrix(rows, columns, seed)
    turned = tensor(z @ rotation(columns, seed + 1))
    for measure, low, high in (
        (matrix_entropy, 0, 1 + 1e-9),
        (effective_rank, 1 - 1e-9, min(rows, columns) + 1e-9),
        (curvature, 0, 1),
    ):
        assert low <= measure(tensor(z)) <= high
        assert measure(turned) == pytest.approx(measure(tensor(z)), rel=1e-6, abs=1e-7)


def test_orthogonal_tokens_are_as_rich_as_can_be() -> None:
    z = torch.eye(5, 8) * 7
    assert matrix_entropy(z) == pytest.approx(1)
    assert effective_rank(z) == pytest.approx(5)


def test_tokens_on_one_line_are_as_poor_as_can_be() -> None:
    z = torch.outer(torch.arange(1.0, 7.0), torch.tensor([1.0, -2.0, 3.0]))
    assert matrix_entropy(z) == pytest.approx(0, abs=1e-9)
    assert effective_rank(z) == pytest.approx(1, abs=1e-5)


def test_single_tokens_and_zeros_have_no_entropy() -> None:
    assert matrix_entropy(torch.ones(1, 4)) == 0
    assert matrix_entropy(torch.zeros(3, 4)) == 0


def test_cka_of_something_with_nothing() -> None:
    constant = torch.full((6, 3), 0.1)
    assert linear_cka(constant, constant) == 1
    assert linear_cka(constant, torch.randn(6, 3, generator=torch.Generator().manual_seed(0))) == 0


def test_unrelated_features_of_many_tokens_are_hardly_aligned() -> None:
    assert linear_cka(tensor(matrix(4000, 3, 0)), tensor(matrix(4000, 3, 1))) < 0.01


def test_cosine() -> None:
    x = tensor(matrix(9, 4, 0))
    assert mean_cosine(x, 2 * x) == pytest.approx(1)
    assert mean_cosine(x, -x) == pytest.approx(-1)
    assert mean_cosine(torch.eye(2), torch.tensor([[0.0, 1.0], [0.0, 3.0]])) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ([[0, 0], [1, 1], [3, 3], [4, 4]], 0.0),
        ([[0, 0], [1, 0], [0, 0], [1, 0]], 1.0),
        ([[0, 0], [1, 0], [1, 1], [0, 1]], 0.5),
        ([[0, 0], [1, 0], [1, 0], [2, 1]], 0.25),
        ([[0, 0], [1, 0]], 0.0),
    ],
    ids=["straight", "back and forth", "square", "standing still has no direction", "one step has no angle"],
)
def test_curvature_of_known_paths(path: list[list[float]], expected: float) -> None:
    assert curvature(torch.tensor(path, dtype=torch.float32)) == pytest.approx(expected, abs=1e-4)


@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**16))
@settings(max_examples=40, deadline=None)
def test_the_norm_of_an_update_is_that_of_the_whole_product(rank: int, inputs: int, outputs: int, seed: int) -> None:
    a, b = matrix(rank, inputs, seed), matrix(outputs, rank, seed + 1)
    assert update_norm(tensor(a), tensor(b), 0.7) == pytest.approx(np.linalg.norm(0.7 * b @ a), rel=1e-6, abs=1e-9)
