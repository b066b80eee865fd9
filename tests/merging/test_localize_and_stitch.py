import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from evomerge.merging.localize_and_stitch import LocalizeAndStitch
from tests.merging.tensors import inputs_of, random_tensors, relative_error
from tests.merging.test_properties import cases, error_of, fast


def oracle(inputs, weights, *, density, lambda_):
    """Trim each expert by magnitude, average what is left where it is; float64."""
    base = inputs.base.double().numpy()
    deltas = np.stack([delta.double().numpy() for delta in inputs.deltas])
    w = np.array(weights).reshape(-1, *[1] * base.ndim)
    if base.ndim <= 1:
        return base + lambda_ * (w * deltas).mean(0)
    flat = np.sort(np.abs(deltas).reshape(len(deltas), -1), axis=1)[:, ::-1]
    edge = flat[:, max(int(density * flat.shape[1]), 1) - 1].reshape(w.shape)
    masks = (np.abs(deltas) >= edge) & (deltas != 0)
    return base + lambda_ * (w * deltas * masks).sum(0) / np.maximum(masks.sum(0), 1)


@fast
@given(cases(dtypes=st.just(torch.float32)), st.floats(0.0, 1.0), st.sampled_from([0, 1]))
def test_it_matches_its_formula(inputs, density, which):
    weights = tuple(0.2 + 0.3 * k for k in range(len(inputs.experts)))
    operator = LocalizeAndStitch(
        weights=weights, density=density, lambda_=0.8, threshold=("global", "tensor")[which]
    )
    expected = oracle(inputs, weights, density=density, lambda_=0.8)
    assert error_of(operator.merge(inputs), expected, inputs) < 2e-6


def test_there_is_no_vote_where_experts_disagree():
    inputs = inputs_of(torch.zeros(1, 2), [torch.tensor([[3.0, 1.0]]), torch.tensor([[-1.0, 2.0]])])
    merged = LocalizeAndStitch(weights=(1.0, 1.0), density=1.0).merge(inputs)
    assert merged.tolist() == [[1.0, 1.5]]


def test_disjoint_supports_add_up():
    base = torch.zeros(3, 4)
    experts = [torch.zeros(3, 4) for _ in range(3)]
    for k, expert in enumerate(experts):
        expert[k] = torch.tensor([1.0, -2.0, 3.0, -4.0]) * (k + 1)
    merged = LocalizeAndStitch(weights=(1.0,) * 3, density=1.0).merge(inputs_of(base, experts))
    assert torch.equal(merged, sum(experts))


def test_kept_fractions_are_the_density_and_masks_nest():
    base, experts = random_tensors((20, 20), 1)
    inputs = inputs_of(torch.zeros_like(base), [experts[0] - base])
    small, large = (
        LocalizeAndStitch(weights=(1.0,), density=d, threshold="tensor").merge(inputs) != 0
        for d in (0.1, 0.3)
    )
    assert (int(small.sum()), int(large.sum())) == (40, 120)
    assert (small <= large).all()


def test_vectors_are_averaged_unless_asked_for():
    base, experts = random_tensors((7,), 3)
    inputs = inputs_of(base, experts)
    mean = torch.stack([e.double() - base.double() for e in experts]).mean(0)
    merged = LocalizeAndStitch(weights=(1.0,) * 3).merge(inputs)
    assert relative_error(merged, base.double() + mean) < 1e-6
    trimmed = LocalizeAndStitch(weights=(1.0,) * 3, threshold="tensor", vectors="include")
    assert int((trimmed.merge(inputs) != base).sum()) <= 3
