"""NLERP against a float64 oracle, its ends, and what it is not: equal shares of the angle."""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evomerge.errors import ConfigError
from evomerge.merging.nlerp import Nlerp
from tests.merging.tensors import inputs_of, random_tensors, relative_error
from tests.merging.test_properties import POSITIVE, cases, error_of, fast, weights_for


def oracle(points, weights):
    """The formula; None where the directions nearly cancel and float32 rounding is amplified."""
    points = [p.double() for p in points]
    lengths = [p.norm() for p in points]
    units = [p / n if n > 0 else p for p, n in zip(points, lengths, strict=True)]
    mean = sum(w * u for w, u in zip(weights, units, strict=True))
    if float(mean.norm()) < 0.1 * sum(map(abs, weights)):
        return None
    size = sum(w * n for w, n in zip(weights, lengths, strict=True))
    return size * mean / mean.norm()


@fast
@given(cases(max_experts=8), st.data(), st.booleans())
def test_nlerp_matches_the_formula(inputs, data, normalize):
    weights = data.draw(weights_for(POSITIVE, len(inputs.experts)))
    shares = [w / math.fsum(weights) for w in weights] if normalize else list(weights)
    inputs = dataclasses.replace(inputs, out_dtype=torch.float32)
    if len(weights) == 1:
        return
    operator = Nlerp(weights=weights, normalize=normalize)
    expected = oracle(inputs.deltas, shares)
    if expected is not None:
        expected = inputs.base.double() + expected
        assert error_of(operator.merge(inputs), expected, inputs) < 4e-6
    raw = dataclasses.replace(operator, space="raw")
    expected = oracle(inputs.experts, shares)
    if expected is not None:
        assert error_of(raw.merge(inputs), expected, inputs) < 4e-6
        alone = inputs_of(None, inputs.experts, out_dtype=torch.float32)
        assert relative_error(operator.merge(alone), raw.merge(inputs)) < 4e-6


@fast
@given(cases(), st.data())
def test_a_one_hot_weight_gives_that_expert_bit_for_bit(inputs, data):
    n = len(inputs.experts)
    k = data.draw(st.integers(0, n - 1))
    one_hot = tuple(0.7 * (i == k) for i in range(n))
    for space in ("raw", "delta"):
        for compat in ("paper", "mergekit"):
            merged = Nlerp(weights=one_hot, space=space, compat=compat).merge(inputs)
            assert torch.equal(merged, inputs.experts[k])


@fast
@given(cases(min_experts=2, dtypes=st.just(torch.float32)), st.data())
def test_the_order_of_the_parents_does_not_matter(inputs, data):
    n = len(inputs.experts)
    order = data.draw(st.permutations(range(n)))
    weights = data.draw(weights_for(POSITIVE, n))
    turned = inputs_of(inputs.base, [inputs.experts[k] for k in order])
    if oracle(inputs.deltas, weights) is None:
        return
    one = Nlerp(weights=weights).merge(inputs)
    other = Nlerp(weights=tuple(weights[k] for k in order)).merge(turned)
    assert error_of(one, other, inputs) < 4e-6


@fast
@given(cases(dtypes=st.just(torch.float32)), st.data())
def test_equal_parents_give_themselves(inputs, data):
    n = len(inputs.experts)
    same = inputs_of(inputs.base, [inputs.experts[0]] * n)
    weights = data.draw(weights_for(POSITIVE, n))
    for space in ("raw", "delta"):
        merged = Nlerp(weights=weights, space=space).merge(same)
        assert error_of(merged, same.experts[0], same) < 2e-6


def test_experts_equal_to_the_base_give_the_base():
    base, _ = random_tensors((3, 4), 0)
    inputs = inputs_of(base, [base.clone(), base.clone()])
    for compat in ("paper", "mergekit"):
        merged = Nlerp(weights=(0.3, 0.9), compat=compat).merge(inputs)
        assert relative_error(merged, base) < 1e-6


def test_opposed_task_vectors_are_interpolated_linearly():
    base, (a,) = random_tensors((4, 4), 1)
    inputs = inputs_of(torch.zeros(4, 4), [a, -a])
    for compat in ("paper", "mergekit"):
        assert not Nlerp(weights=(0.5, 0.5), compat=compat).merge(inputs).any()
    # Opposed but for the rounding of float32.
    inputs = inputs_of(base, [a, base - (a - base)])
    assert relative_error(Nlerp(weights=(0.5, 0.5)).merge(inputs), base) < 1e-6
    # mergekit refuses more than two.
    inputs = inputs_of(torch.zeros(4, 4), [a, -a, a, -a])
    assert not Nlerp(weights=(0.2,) * 4, compat="mergekit").merge(inputs).any()


def test_a_short_task_vector_beside_a_long_one_keeps_its_digits():
    base, (a, b) = random_tensors((8, 8), 2)
    inputs = inputs_of(base, [base + 1e-3 * (a - base), base + 1e3 * (b - base)])
    expected = base.double() + oracle(inputs.deltas, (0.5, 0.5))
    assert error_of(Nlerp(weights=(0.5, 0.5)).merge(inputs), expected, inputs) < 1e-6


def test_the_angle_is_not_divided_in_the_ratio_of_the_weights():
    """mergekit calls this multislerp; at weight 0.2 of two vectors 88.75 degrees apart it
    goes 13.96 degrees instead of 17.75.
    """
    angle = math.radians(88.75)
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([math.cos(angle), math.sin(angle)])
    for compat in ("paper", "mergekit"):
        merged = Nlerp(weights=(0.8, 0.2), compat=compat).merge(inputs_of(None, [a, b]))
        assert abs(math.degrees(math.atan2(merged[1], merged[0])) - 13.96) < 0.01


def test_mergekits_constant_bends_the_direction_of_tiny_task_vectors():
    base = torch.zeros(2)
    experts = [torch.tensor([1e-8, 0.0]), torch.tensor([0.0, 1.0])]
    merged = {
        compat: Nlerp(weights=(0.5, 0.5), compat=compat).merge(inputs_of(base, experts))
        for compat in ("paper", "mergekit")
    }
    assert abs(float(merged["paper"][0] / merged["paper"][1]) - 1.0) < 1e-6
    assert abs(float(merged["mergekit"][0] / merged["mergekit"][1]) - 0.5) < 1e-6


def test_the_weight_moves_the_merge_from_one_expert_to_the_other():
    base, (a, b) = random_tensors((5, 6), 2)
    gaps = [
        float((Nlerp(weights=(1.0 - w, w)).merge(inputs_of(base, [a, b])) - b).norm())
        for w in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    assert all(x > y for x, y in pairwise(gaps))


def test_wrong_parameters_are_refused():
    with pytest.raises(ConfigError, match="nlerp: the weights"):
        Nlerp(weights=(1.0, -1.0))
    with pytest.raises(ConfigError, match="space is 'tangent'"):
        Nlerp(weights=(1.0,), space="tangent")
    _, experts = random_tensors((2, 2), 2)
    with pytest.raises(ConfigError, match="`space: delta` needs a base"):
        Nlerp(weights=(1.0, 1.0), space="delta").merge(inputs_of(None, experts))
