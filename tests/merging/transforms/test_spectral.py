"""The linear algebra of the spectral transforms against numpy in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from evomerge.merging.transforms import spectral
from evomerge.merging.transforms.spectral import as_matrices, polar, thin_svd
from tests.merging.transforms.spectral_cases import (
    SEEDS,
    SHAPES,
    error,
    oracle_polar,
    random_deltas,
    rotation,
)


def of_spectrum(shape, values, seed=0):
    """Return a float64 matrix with the given singular values."""
    left, right = rotation(shape[0], seed), rotation(shape[1], seed + 1)
    rank = len(values)
    return torch.from_numpy(left[:, :rank] * np.asarray(values) @ right[:, :rank].T)


@settings(deadline=None, max_examples=40)
@given(shape=SHAPES, seed=SEEDS)
def test_the_factors_of_a_thin_svd_are_orthonormal_and_give_the_matrix(shape, seed):
    (matrix,) = random_deltas(shape, 1, seed=seed)
    factors = thin_svd(torch.from_numpy(matrix))
    assert error(factors.product(), matrix) < 1e-5
    eye = np.eye(factors.rank)
    assert error(factors.left.T @ factors.left, eye) < 1e-12
    assert error(factors.right.T @ factors.right, eye) < 1e-12
    assert (factors.values > 0).all()
    assert (factors.values.diff() <= 0).all()


def test_the_largest_element_of_every_left_vector_is_positive():
    (matrix,) = random_deltas((7, 5), 1)
    factors = thin_svd(torch.from_numpy(-matrix))
    largest = factors.left.abs().argmax(0)
    assert (factors.left[largest, range(5)] > 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_is_not_rank(dtype):
    (matrix,) = random_deltas((30, 20), 1, rank=4)
    factors = thin_svd(torch.from_numpy(matrix).to(dtype))
    assert factors.rank == 4
    assert factors.left.dtype == dtype
    assert factors.truncated(2).rank == 2
    assert factors.truncated(9).rank == 4


def test_the_rounding_of_a_large_float32_svd_is_not_rank_either():
    (matrix,) = random_deltas((1200, 1100), 1, rank=1)
    assert thin_svd(torch.from_numpy(matrix).float()).rank == 1


def test_a_remainder_counts_from_the_norm_of_what_it_is_left_of():
    remainder = of_spectrum((6, 6), [1e-9, 1e-10])
    assert thin_svd(remainder).rank == 2
    assert thin_svd(remainder, reference=1.0).rank == 0


def test_a_zero_matrix_has_rank_zero_and_a_zero_polar_factor():
    zero = torch.zeros(3, 5)
    factors = thin_svd(zero)
    assert factors.rank == 0
    assert torch.equal(factors.product(), zero)
    assert torch.equal(polar(zero), zero)
    assert polar(torch.zeros(3, 0)).shape == (3, 0)


@settings(deadline=None, max_examples=40)
@given(shape=SHAPES, seed=SEEDS)
def test_the_polar_factor_is_that_of_its_definition(shape, seed):
    (matrix,) = random_deltas(shape, 1, seed=seed)
    is_tall = shape[0] >= shape[1]
    expected = oracle_polar(matrix if is_tall else matrix.T)
    expected = expected if is_tall else expected.T
    # The oracle squares the condition number.
    assert error(polar(torch.from_numpy(matrix)), expected) < 1e-5


@pytest.mark.parametrize("shape", [(40, 30), (30, 40), (33, 33), (5, 1), (1, 5)])
def test_newton_schulz_agrees_with_the_svd(shape, monkeypatch):
    rank = min(shape)
    matrix = of_spectrum(shape, np.geomspace(3.0, 0.01, rank) if rank > 1 else [3.0])
    exact = polar(matrix)
    monkeypatch.setattr(spectral, "thin_svd", None)  # must not be needed
    found = polar(matrix.float())
    assert found.dtype == torch.float32
    assert error(found, exact) < 1e-4  # float32 rounding times the condition number 300


@pytest.mark.parametrize("values", [[1.0, 1e-3, 1e-5], [1.0, 0.5]])
def test_where_newton_schulz_does_not_converge_the_svd_answers(values):
    matrix = of_spectrum((8, 3), values).float()
    found = polar(matrix).double()
    expected = np.linalg.svd(matrix.double().numpy(), full_matrices=False)
    rank = len(values)
    assert error(found, expected[0][:, :rank] @ expected[2][:rank]) < 1e-6


def test_a_start_vector_orthogonal_to_the_matrix_does_no_harm():
    matrix = torch.tensor([[1.0, -1.0], [1.0, -1.0]])
    assert error(polar(matrix), matrix / 2.0) < 1e-6


def test_small_matrices_are_computed_in_float64_and_large_ones_in_float32():
    assert as_matrices([torch.zeros(1024, 1025)])[0].dtype == torch.float64
    assert as_matrices([torch.zeros(1025, 1025)])[0].dtype == torch.float32
    assert as_matrices([torch.zeros(4, 3, 2, 2)])[0].shape == (4, 12)
