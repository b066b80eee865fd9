"""KnOTS: oracle, equality with task arithmetic, the choices, adapters by their factors."""

import dataclasses
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import ConfigError
from evomerge.merging.low_rank import LowRank
from evomerge.merging.transforms import knots
from evomerge.merging.transforms.knots import Knots
from tests.merging.low_rank_cases import dense, random_factors
from tests.merging.transforms.spectral_cases import (
    EXPERTS,
    SEEDS,
    SHAPES,
    error,
    inputs_of,
    merged,
    oracle_svd,
    random_deltas,
    rotation,
)


def ties(coordinates, density, divisor):
    """Return the TIES merge of a list of arrays."""
    kept = []
    for array in coordinates:
        order = np.sort(np.abs(array), axis=None)
        n_kept = min(max(int(density * array.size), 1), array.size)
        kept.append(np.where(np.abs(array) >= order[-n_kept], array, 0.0))
    sign = np.where(sum(kept) >= 0.0, 1.0, -1.0)
    agrees = [array * sign > 0.0 for array in kept]
    total = sum(array * mask for array, mask in zip(kept, agrees, strict=True))
    return total / np.maximum(sum(agrees), 1) if divisor == "mean" else total


def oracle(deltas, density, divisor, scaled):
    """Return KnOTS-TIES with an SVD of the concatenated task vectors."""
    u, s, v = oracle_svd(np.hstack(deltas))
    blocks = np.split(v.T, len(deltas), axis=1)
    if scaled:
        return u @ ties([s[:, None] * block for block in blocks], density, divisor)
    return u * s @ ties(blocks, density, divisor)


@settings(deadline=None, max_examples=60)
@given(
    shape=SHAPES,
    n=EXPERTS,
    seed=SEEDS,
    density=st.sampled_from([0.2, 0.5, 1.0]),
    divisor=st.sampled_from(["mean", "none"]),
    scaled=st.booleans(),
)
def test_the_merge_is_that_of_the_paper(shape, n, seed, density, divisor, scaled):
    deltas = random_deltas(shape, n, seed=seed)
    transform = Knots(density=density, divisor=divisor, scaled=scaled)
    expected = oracle(deltas, density, divisor, scaled)
    assert error(merged(transform, deltas), expected) < 1e-5


@settings(deadline=None, max_examples=30)
@given(shape=SHAPES, n=EXPERTS, seed=SEEDS, scaled=st.booleans())
def test_with_task_arithmetic_the_basis_makes_no_difference(shape, n, seed, scaled):
    deltas = random_deltas(shape, n, seed=seed)
    transform = Knots(method="ta", divisor="none", scaled=scaled)
    assert error(merged(transform, deltas), sum(deltas)) < 2e-6
    mean = Knots(method="ta", scaled=scaled)
    assert error(merged(mean, deltas), sum(deltas) / n) < 2e-6


@pytest.mark.parametrize("shape", [(40, 6), (6, 40)])
def test_low_rank_experts_have_a_small_basis(shape):
    deltas = random_deltas(shape, 3, rank=1)
    expected = oracle(deltas, 0.3, "mean", True)
    assert error(merged(Knots(density=0.3), deltas), expected) < 1e-5
    assert np.linalg.matrix_rank(merged(Knots(density=0.3), deltas), tol=1e-4) <= 3


def test_the_basis_of_eigenvectors_keeps_small_singular_values():
    left, right = rotation(12, 1), rotation(30, 2)
    delta = left * np.geomspace(1.0, 1e-5, 12) @ right[:, :12].T
    assert error(merged(Knots(method="ta"), [delta]), delta) < 1e-6
    smallest = left[:, -1] @ merged(Knots(method="ta"), [delta]) @ right[:, 11]
    assert abs(smallest / 1e-5 - 1.0) < 1e-2  # what float32 rounding of the whole leaves


def test_rotating_the_outputs_rotates_the_merge():
    deltas = random_deltas((9, 7), 3)
    turn = rotation(9, 5)
    found = merged(Knots(), [turn @ delta for delta in deltas])
    assert error(found, turn @ merged(Knots(), deltas)) < 1e-5


@settings(deadline=None, max_examples=40)
@given(
    shape=SHAPES,
    ranks=st.lists(st.integers(0, 4), min_size=1, max_size=5),
    seed=SEEDS,
    density=st.sampled_from([0.2, 1.0]),
    scaled=st.booleans(),
    is_transposed=st.booleans(),
)
def test_adapters_are_merged_from_their_factors(shape, ranks, seed, density, scaled, is_transposed):
    parts = random_factors(*shape, ranks, seed=seed, is_transposed=is_transposed)
    deltas = [dense(part).numpy() for part in parts]
    inputs = dataclasses.replace(inputs_of(deltas), factors=tuple(parts))
    transform = Knots(density=density, scaled=scaled)
    with mock.patch.object(knots, "shared_basis", side_effect=AssertionError("a dense basis")):
        (found,) = transform.transform(inputs, None)
    assert error(found, merged(transform, deltas)) < 1e-5


def test_one_full_model_among_adapters_is_merged_from_task_vectors():
    parts = random_factors(6, 5, [2, 2])
    deltas = [dense(part).numpy() for part in parts]
    inputs = dataclasses.replace(inputs_of(deltas), factors=(parts[0], None))
    (found,) = Knots().transform(inputs, None)
    assert np.array_equal(found.double().numpy(), merged(Knots(), deltas))


def test_adapters_that_change_nothing_merge_to_nothing():
    inputs = dataclasses.replace(
        inputs_of([np.zeros((4, 3))] * 2), factors=(LowRank.zero(4, 3), LowRank.zero(4, 3))
    )
    (found,) = Knots().transform(inputs, None)
    assert not found.any()


@pytest.mark.parametrize(
    "bad",
    [{"density": 0.0}, {"density": 1.2}, {"method": "dare"}, {"divisor": "sum"}, {"scaled": 1}],
)
def test_settings_outside_their_range_are_refused(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        Knots(**bad)
