import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from evomerge.merging.magmax import MagMax
from tests.merging.tensors import inputs_of, random_tensors, relative_error
from tests.merging.test_properties import cases, error_of, fast


def oracle(inputs, lambda_):
    base = inputs.base.double().numpy()
    deltas = np.stack([delta.double().numpy() for delta in inputs.deltas])[::-1]
    chosen = np.take_along_axis(deltas, np.abs(deltas).argmax(0)[None], axis=0)[0]
    return base + lambda_ * chosen


@fast
@given(cases(), st.floats(0.0, 1.5))
def test_it_matches_its_formula(inputs, lambda_):
    merged = MagMax(lambda_=lambda_).merge(inputs)
    expected = torch.as_tensor(oracle(inputs, lambda_))
    if inputs.out_dtype == torch.float32:
        assert error_of(merged, expected, inputs) < 2e-6
    else:
        unit = torch.finfo(inputs.out_dtype).eps
        assert error_of(merged, expected, inputs) <= unit


def test_the_later_expert_wins_ties():
    a, b = torch.tensor([[1.0, -2.0]]), torch.tensor([[-1.0, 2.0]])
    zero = torch.zeros(1, 2)
    assert torch.equal(MagMax(lambda_=1.0).merge(inputs_of(zero, [a, b])), b)
    assert torch.equal(MagMax(lambda_=1.0).merge(inputs_of(zero, [b, a])), a)


def test_equal_experts_give_themselves_and_one_expert_is_exact():
    base, (expert,) = random_tensors((5, 4), 1, scale=9.0)
    inputs = inputs_of(base, [expert, expert.clone(), expert.clone()])
    assert relative_error(MagMax(lambda_=1.0).merge(inputs), expert.double()) < 1e-6
    assert torch.equal(MagMax(lambda_=1.0).merge(inputs_of(base, [expert])), expert)
