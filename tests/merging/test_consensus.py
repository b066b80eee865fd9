import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evomerge.errors import ConfigError
from evomerge.merging.consensus import Consensus
from evomerge.merging.task_arithmetic import TaskArithmetic
from tests.merging.tensors import inputs_of, random_tensors
from tests.merging.test_properties import cases, error_of, fast


def oracle(inputs, weights, *, threshold, agreement, lambda_):
    """TALL masks and their count on one tensor in float64."""
    base = inputs.base.double().numpy()
    deltas = np.stack([delta.double().numpy() for delta in inputs.deltas])
    w = np.array(weights).reshape(-1, *[1] * base.ndim)
    total = lambda_ * (w * deltas).sum(0)
    if base.ndim <= 1:
        return base + total
    masks = np.abs(deltas) >= threshold * np.abs(deltas.sum(0) - deltas)
    return base + total * (masks.sum(0) >= min(agreement, len(deltas)))


@fast
@given(cases(dtypes=st.just(torch.float32)), st.floats(0.1, 0.9), st.integers(0, 4))
def test_it_matches_its_formula(inputs, threshold, agreement):
    weights = tuple(0.2 + 0.3 * k for k in range(len(inputs.experts)))
    operator = Consensus(
        weights=weights, mask_threshold=threshold, agreement=agreement, lambda_=0.8
    )
    expected = oracle(inputs, weights, threshold=threshold, agreement=agreement, lambda_=0.8)
    assert error_of(operator.merge(inputs), expected, inputs) < 2e-6


def test_what_one_expert_alone_claims_is_left_out():
    a, b = torch.tensor([[1.0, 1.0, 1.0]]), torch.tensor([[0.0, 0.5, -0.1]])
    merged = Consensus(weights=(1.0, 1.0), mask_threshold=0.4).merge(
        inputs_of(torch.zeros(1, 3), [a, b])
    )
    assert merged.tolist() == [[0.0, 1.5, 0.0]]


def test_agreement_one_and_zero_keep_what_is_claimed():
    base, experts = random_tensors((9, 9), 3)
    inputs = inputs_of(base, experts)
    weights = (1.0, 1.0, 1.0)
    summed = TaskArithmetic(weights=weights).merge(inputs)
    assert torch.equal(Consensus(weights=weights, agreement=0).merge(inputs), summed)
    kept = [
        int((Consensus(weights=weights, agreement=k).merge(inputs) != base).sum())
        for k in (0, 1, 2, 3)
    ]
    assert kept == sorted(kept, reverse=True)
    assert kept[3] < kept[1]


def test_smaller_mask_thresholds_keep_more():
    base, experts = random_tensors((20, 20), 4)
    zero = inputs_of(torch.zeros_like(base), [e - base for e in experts])
    weights = (1.0,) * 4
    wide, narrow = (
        Consensus(weights=weights, mask_threshold=t).merge(zero) != 0 for t in (0.2, 0.6)
    )
    assert (narrow <= wide).all()
    assert int(narrow.sum()) < int(wide.sum())


def test_a_lone_expert_claims_everything_and_vectors_are_exempt():
    base, (expert,) = random_tensors((5, 4), 1, scale=9.0)
    assert torch.equal(Consensus(weights=(1.0,)).merge(inputs_of(base, [expert])), expert)
    base, experts = random_tensors((30,), 2)
    inputs = inputs_of(base, experts)
    weights = (0.3, 0.4)
    summed = TaskArithmetic(weights=weights).merge(inputs)
    assert torch.equal(Consensus(weights=weights).merge(inputs), summed)
    masked = Consensus(weights=weights, vectors="include").merge(inputs)
    assert not torch.equal(masked, summed)


def test_a_negative_agreement_is_refused():
    with pytest.raises(ConfigError, match="agreement is -1, must be at least 0"):
        Consensus(weights=(1.0,), agreement=-1)
