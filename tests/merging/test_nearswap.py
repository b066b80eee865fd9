import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evomerge.errors import ConfigError
from evomerge.merging.nearswap import NearSwap
from tests.merging.tensors import inputs_of, random_tensors, relative_error
from tests.merging.test_properties import cases, error_of, fast


def oracle(a, b, step):
    """(1 - v) a + v b with v = clamp(step / |b - a|, 0, 1), 1 where they are equal; float64."""
    a, b = (tensor.double().numpy() for tensor in (a, b))
    with np.errstate(divide="ignore", invalid="ignore"):
        v = np.nan_to_num(step / np.abs(b - a), nan=1.0, posinf=1.0).clip(0.0, 1.0)
    return (1 - v) * a + v * b


def rms(delta):
    return float(delta.double().square().mean().sqrt())


@fast
@given(cases(max_experts=1, dtypes=st.just(torch.float32)), st.floats(0.0, 3.0))
def test_it_matches_its_formula(inputs, t):
    base, expert = inputs.base, inputs.experts[0]
    for compat, step in (("mergekit", t), ("paper", t * rms(inputs.deltas[0]))):
        merged = NearSwap(t=t, compat=compat).merge(inputs)
        assert torch.isfinite(merged).all()
        assert error_of(merged, oracle(base, expert, step), inputs) < 2e-6


def test_near_weights_become_the_others_bit_for_bit():
    base, (expert,) = random_tensors((9, 9), 1)
    base = 50.0 * base  # so far away that base + (expert - base) is not the expert
    inputs = inputs_of(base, [expert])
    assert not torch.equal(base + inputs.deltas[0], expert)
    assert torch.equal(NearSwap(t=0.0).merge(inputs), base)
    assert torch.equal(NearSwap(t=100.0).merge(inputs), expert)
    half = NearSwap(t=0.5).merge(inputs)
    is_near = (expert - base).abs() < 0.499 * rms(expert - base)
    assert torch.equal(half[is_near], expert[is_near])


def test_steps_in_units_of_the_weights_do_not_grow_with_the_changes():
    """The deviation: mergekit's `t` means less and less the further the models are apart."""
    base, (expert,) = random_tensors((20, 20), 1)
    zero = torch.zeros_like(base)
    near, far = (inputs_of(zero, [k * (expert - base)]) for k in (1.0, 8.0))
    paper = NearSwap(t=0.3)
    assert relative_error(paper.merge(far), 8.0 * paper.merge(near).double()) < 1e-6
    mergekit = NearSwap(t=0.03, compat="mergekit")
    assert relative_error(mergekit.merge(far), 8.0 * mergekit.merge(near).double()) > 0.5


def test_two_experts_are_swapped_with_or_without_a_base():
    base, (a, b) = random_tensors((6, 6), 2)
    expected = oracle(a, b, 0.4 * rms(b - a))
    for given_base in (base, None):
        merged = NearSwap(t=0.4).merge(inputs_of(given_base, [a, b]))
        assert relative_error(merged, expected) < 1e-6


def test_other_numbers_of_models_are_refused():
    base, experts = random_tensors((2, 2), 3)
    with pytest.raises(ConfigError, match="w: nearswap merges two models, got 3 experts and a"):
        NearSwap().merge(inputs_of(base, experts))
    with pytest.raises(ConfigError, match=r"got 1 experts$"):
        NearSwap().merge(inputs_of(None, experts[:1]))
