from unittest import mock

import pytest
import torch

from evomerge.errors import ConfigError
from evomerge.merging import fused
from evomerge.merging.nuslerp import NuSlerp
from tests.merging.tensors import inputs_of, random_tensors, relative_error
from tests.merging.test_slerp import oracle


@pytest.mark.parametrize("weights", [(0.6, 0.2), (1.0, 1.0), (0.1, 0.9)])
def test_flat_nuslerp_is_slerp_at_the_share_of_the_second_weight(weights):
    base, (a, b) = random_tensors((6, 4), 2)
    t = weights[1] / sum(weights)
    merged = NuSlerp(weights=weights).merge(inputs_of(base, [a, b]))
    tau = oracle(t, a.double() - base.double(), b.double() - base.double())
    assert relative_error(merged, base.double() + tau) < 1e-6
    merged = NuSlerp(weights=weights).merge(inputs_of(None, [a, b]))
    assert relative_error(merged, oracle(t, a, b)) < 1e-6


@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_each_vector_along_the_axis_has_its_own_angle(axis):
    base, (a, b) = random_tensors((3, 4, 5), 2)
    merged = NuSlerp(weights=(0.7, 0.3), flatten=False, axis=axis).merge(inputs_of(base, [a, b]))
    da, db = a.double() - base.double(), b.double() - base.double()
    expected = base.double().movedim(axis, -1).reshape(-1, a.shape[axis]).clone()
    rows = zip(
        da.movedim(axis, -1).reshape(expected.shape),
        db.movedim(axis, -1).reshape(expected.shape),
        strict=True,
    )
    for row, (x, y) in enumerate(rows):
        expected[row] += oracle(0.3, x, y)
    got = merged.movedim(axis, -1).reshape(expected.shape)
    assert relative_error(got, expected) < 1e-6


def test_per_row_without_a_base_uses_the_raw_rows():
    _, (a, b) = random_tensors((3, 5), 2, scale=2.0)
    merged = NuSlerp(weights=(0.5, 0.5), flatten=False).merge(inputs_of(None, [a, b]))
    expected = torch.stack([oracle(0.5, x, y) for x, y in zip(a, b, strict=True)])
    assert relative_error(merged, expected) < 1e-6


@pytest.mark.parametrize("flatten", [True, False])
@pytest.mark.parametrize("has_base", [True, False])
def test_one_hot_weights_are_bit_exact(flatten, has_base):
    base, (a, b) = random_tensors((7, 4), 2, scale=5.0)
    inputs = inputs_of(base if has_base else None, [a, b])
    assert torch.equal(NuSlerp(weights=(0.4, 0.0), flatten=flatten).merge(inputs), a)
    assert torch.equal(NuSlerp(weights=(0.0, 2.0), flatten=flatten).merge(inputs), b)


@pytest.mark.parametrize("weights", [(0.0, 0.0), (0.5, -0.5)])
def test_weights_that_sum_to_zero_mean_the_middle(weights):
    assert NuSlerp(weights=weights).t == 0.5


def test_zero_and_parallel_rows_are_interpolated_linearly():
    a = torch.tensor([[0.0, 0.0], [1.0, 2.0], [3.0, 0.0]])
    b = torch.tensor([[2.0, 4.0], [2.0, 4.0], [-1.0, 0.0]])
    operator = NuSlerp(weights=(0.75, 0.25), flatten=False)
    merged = operator.merge(inputs_of(None, [a, b]))
    assert torch.allclose(merged, 0.75 * a + 0.25 * b)
    assert torch.isfinite(merged).all()


def test_anything_but_two_experts_is_refused():
    base, experts = random_tensors((2, 2), 3)
    with pytest.raises(ConfigError, match="two experts, got 3 weights"):
        NuSlerp(weights=(1.0, 1.0, 1.0))
    with pytest.raises(ConfigError, match="two experts, got 3"):
        NuSlerp(weights=(1.0, 1.0)).merge(inputs_of(base, experts))


@pytest.mark.parametrize("axis", [2, -3])
def test_an_axis_that_a_tensor_lacks_is_refused(axis):
    base, experts = random_tensors((3, 4), 2)
    operator = NuSlerp(weights=(0.3, 0.6), flatten=False, axis=axis)
    with pytest.raises(ConfigError, match=f"w: nuslerp's axis is {axis}, the tensor has 2 axes"):
        operator.merge(inputs_of(base, experts))


@pytest.mark.parametrize(
    ("shape", "lengths"),
    [
        ((5, 7, 11), (1, 100, 200)),
        ((2, 10_000), (100, 200, 9000)),
        ((10_000, 2), (100, 200, 9000)),
        ((2, 5000, 3), (100, 200, 9000)),
    ],
)
@pytest.mark.parametrize("axis", [-1, 0, 1, -2])
def test_vectors_are_interpolated_the_same_in_any_blocks(shape, lengths, axis):
    base, experts = random_tensors(shape, 2)
    operator = NuSlerp(weights=(0.3, 0.6), flatten=False, axis=axis)
    for inputs in (inputs_of(base, experts), inputs_of(None, experts)):
        whole = operator.merge(inputs)
        for length in lengths:
            with mock.patch.object(fused, "_CPU_PASS", length):
                assert torch.equal(operator.merge(inputs), whole)
