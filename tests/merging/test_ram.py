import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from evomerge.merging.ram import Ram, RamPlus, touch_counts
from tests.merging.tensors import inputs_of, random_tensors
from tests.merging.test_properties import cases, error_of, fast


def oracle(inputs, *, epsilon, lambda_, r=0.0, alpha=0.0):
    """Both methods on one tensor in float64."""
    base = inputs.base.double().numpy()
    deltas = np.stack([delta.double().numpy() for delta in inputs.deltas])
    masks = np.abs(deltas) > np.float32(epsilon)
    counts = masks.sum(0)
    merged = np.zeros_like(base)
    for delta, mask in zip(deltas, masks, strict=True):
        alone, shared = mask & (counts == 1), mask & (counts > 1)
        n_alone, n_shared = int(alone.sum()), int(shared.sum())
        rho = min(n_shared / n_alone, alpha) if n_alone else 0.0
        merged = merged + (1 + r * rho) * delta * alone + delta * shared / np.maximum(counts, 1)
    return base + lambda_ * merged


@fast
@given(
    cases(dtypes=st.just(torch.float32)),
    st.sampled_from([0.0, 1e-5, 0.05]),
    st.floats(0.0, 0.5),
    st.floats(0.0, 1.0),
)
def test_both_methods_match_their_formula(inputs, epsilon, r, alpha):
    fixed = {"epsilon": epsilon, "lambda_": 0.8}
    assert error_of(Ram(**fixed).merge(inputs), oracle(inputs, **fixed), inputs) < 2e-6
    plus = RamPlus(r=r, alpha=alpha, **fixed).merge(inputs)
    assert error_of(plus, oracle(inputs, r=r, alpha=alpha, **fixed), inputs) < 2e-6


def test_lone_changes_are_whole_and_shared_ones_averaged():
    a, b = torch.tensor([[2.0, 4.0, 0.0]]), torch.tensor([[0.0, -2.0, 0.0]])
    inputs = inputs_of(torch.zeros(1, 3), [a, b])
    assert Ram().merge(inputs).tolist() == [[2.0, 1.0, 0.0]]
    shared, alone = touch_counts((a, b))
    assert (shared.tolist(), alone.tolist()) == ([1, 1], [1, 0])
    assert RamPlus(r=0.5, alpha=0.5).merge(inputs).tolist() == [[2.5, 1.0, 0.0]]


def test_no_strength_is_ram():
    base, experts = random_tensors((6, 6), 3)
    inputs = inputs_of(base, [*experts[:2], base.clone()])
    assert torch.equal(RamPlus(r=0.0).merge(inputs), Ram().merge(inputs))


def test_epsilon_counts_in_units_of_the_weights():
    base = torch.zeros(1, 3)
    expert = torch.tensor([[1e-6, 1e-4, 1.0]])
    assert torch.equal(Ram().merge(inputs_of(base, [expert])), torch.tensor([[0.0, 1e-4, 1.0]]))
    assert torch.equal(Ram(epsilon=0.0).merge(inputs_of(base, [expert])), expert)
