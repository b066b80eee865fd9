import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import ConfigError
from evomerge.merging.transforms.rmm import Rmm
from evomerge.testing import check_delta_transform
from tests.merging.low_rank_cases import dense, random_factors
from tests.merging.tensors import relative_error
from tests.merging.transforms.spectral_cases import NAME, inputs_of


def rebuilt(parts, **parameters):
    inputs = inputs_of([dense(part).float() for part in parts])
    return Rmm(**parameters).transform(dataclasses.replace(inputs, factors=tuple(parts)), None)


def oracle(matrices, p):
    """Return (E,) matrices whose columns keep the mean and p principal directions, float64."""
    found = np.empty_like(matrices)
    for q in range(matrices.shape[2]):
        vectors = matrices[:, :, q]  # (E, r)
        mean = vectors.mean(0)
        _, _, vt = np.linalg.svd(vectors - mean)
        found[:, :, q] = mean + (vectors - mean) @ vt[:p].T @ vt[:p]
    return found


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 3))
def test_as_many_directions_as_experts_less_one_give_the_parents_back(n, rank, more):
    parts = random_factors(6, 5, [rank] * n)
    for delta, part in zip(rebuilt(parts, basis=max(n - 1 + more, 1)), parts, strict=True):
        assert relative_error(delta, dense(part)) < 1e-6


def test_fewer_directions_are_principal_components_at_every_position():
    parts = random_factors(6, 7, [5, 5, 5, 5])
    for p in (1, 2):
        a = oracle(np.stack([part.a.double().numpy() for part in parts]), p)
        b = oracle(np.stack([part.b.T.double().numpy() for part in parts]), p)
        for delta, a_k, b_k in zip(rebuilt(parts, basis=p), a, b, strict=True):
            assert relative_error(delta, b_k.T @ a_k) < 1e-5


def test_half_the_experts_is_the_default():
    parts = random_factors(6, 7, [5] * 4)
    for one, two in zip(rebuilt(parts), rebuilt(parts, basis=2), strict=True):
        assert torch.equal(one, two)


def test_adapters_of_lower_rank_are_padded():
    parts = random_factors(6, 7, [4, 2, 4])
    results = rebuilt(parts, basis=1)
    assert len(results) == 3
    assert all(bool(torch.isfinite(delta).all()) for delta in results)


def test_task_vectors_that_are_no_products_are_truncated_first():
    parts = random_factors(6, 7, [2, 2])
    inputs = inputs_of([dense(part) for part in parts])
    for delta, part in zip(Rmm(rank=2).transform(inputs, None), parts, strict=True):
        assert relative_error(delta, dense(part)) < 1e-5


def test_vectors_stay_as_they_are():
    inputs = inputs_of([np.ones(4), 2 * np.ones(4), np.zeros(4)], name="model.norm.weight")
    for delta, expected in zip(Rmm().transform(inputs, None), inputs.deltas, strict=True):
        assert torch.equal(delta, expected)
    assert Rmm().fallback("model.norm.weight", (4,)).endswith("as they are")
    assert Rmm().fallback(NAME, (4, 5)) is None


def test_it_keeps_the_contract_of_transforms():
    check_delta_transform("rmm")


def test_an_illegal_basis_is_refused():
    with pytest.raises(ConfigError, match="basis is -1"):
        Rmm(basis=-1)
