"""The Karcher mean against an iteration in float64 tensors, and against SLERP."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from evomerge.errors import ConfigError
from evomerge.merging.karcher import Karcher
from evomerge.merging.slerp import Slerp
from tests.merging.oracle_samples import Sample
from tests.merging.tensors import inputs_of, random_tensors, relative_error
from tests.merging.test_properties import POSITIVE, cases, error_of, fast, weights_for


def oracle(points, weights, n_steps=200):
    """Gradient steps on the sphere; None where the models are not in one open half."""
    points = [p.double().reshape(-1) for p in points]
    total = math.fsum(weights)
    size = sum(w / total * p.norm() for w, p in zip(weights, points, strict=True))
    kept = [(w, p / p.norm()) for w, p in zip(weights, points, strict=True) if p.norm() > 0]
    if not kept:
        return None
    total = math.fsum(w for w, _ in kept)
    at = sum(w / total * u for w, u in kept)
    if float(at.norm()) < 1e-2:
        return None
    at = at / at.norm()
    if min(float(u @ at) for _, u in kept) < 0.3:
        return None
    for _ in range(n_steps):
        step = torch.zeros_like(at)
        for w, u in kept:
            aside = u - (u @ at) * at
            if float(aside.norm()) > 1e-12:
                step += w / total * torch.atan2(aside.norm(), u @ at) * aside / aside.norm()
        if float(step.norm()) < 1e-14:
            break
        at = torch.cos(step.norm()) * at + torch.sin(step.norm()) * step / step.norm()
        at = at / at.norm()
    return size * at


@fast
@given(cases(max_experts=8, dtypes=st.just(torch.float32)), st.data())
def test_karcher_matches_the_iteration_on_tensors(inputs, data):
    weights = data.draw(weights_for(POSITIVE, len(inputs.experts)))
    for space, points in (("delta", inputs.deltas), ("raw", inputs.experts)):
        expected = oracle(points, weights)
        if expected is None:
            continue
        expected = expected.reshape(inputs.base.shape)
        if space == "delta":
            expected = inputs.base.double() + expected
        merged = Karcher(weights=weights, space=space, max_iter=500).merge(inputs)
        assert error_of(merged, expected, inputs) < 4e-6


@pytest.mark.parametrize("n_experts", range(1, 9))
def test_karcher_of_many_experts_matches_the_iteration(n_experts):
    base, experts = random_tensors((6, 7), n_experts, seed=n_experts, scale=0.3)
    weights = tuple(1.0 + 0.2 * k for k in range(n_experts))
    merged = Karcher(weights=weights, space="raw").merge(inputs_of(base, experts))
    expected = oracle(experts, weights)
    assert expected is not None
    assert relative_error(merged, expected.reshape(6, 7)) < 1e-6


@fast
@given(cases(min_experts=2, max_experts=2, dtypes=st.just(torch.float32)), st.floats(0.05, 0.95))
def test_karcher_of_two_unit_vectors_is_slerp(inputs, t):
    lengths = [float(d.norm()) for d in inputs.deltas]
    assume(min(lengths) > 0.0)
    cos = float((inputs.deltas[0] * inputs.deltas[1]).sum()) / math.prod(lengths)
    assume(cos > -0.9)
    zero = torch.zeros_like(inputs.base)
    units = inputs_of(zero, [d / n for d, n in zip(inputs.deltas, lengths, strict=True)])
    merged = Karcher(weights=(1.0 - t, t), max_iter=1000).merge(units)
    assert relative_error(merged, Slerp(t=t).merge(units)) < 4e-6


@fast
@given(cases(), st.data())
def test_a_one_hot_weight_gives_that_expert_bit_for_bit(inputs, data):
    n = len(inputs.experts)
    k = data.draw(st.integers(0, n - 1))
    one_hot = tuple(0.7 * (i == k) for i in range(n))
    for space in ("raw", "delta"):
        for compat in ("paper", "mergekit"):
            merged = Karcher(weights=one_hot, space=space, compat=compat).merge(inputs)
            assert torch.equal(merged, inputs.experts[k])


@fast
@given(cases(min_experts=2, dtypes=st.just(torch.float32)), st.data())
def test_the_order_of_the_parents_does_not_matter(inputs, data):
    n = len(inputs.experts)
    order = data.draw(st.permutations(range(n)))
    weights = data.draw(weights_for(POSITIVE, n))
    assume(oracle(inputs.deltas, weights) is not None)
    turned = inputs_of(inputs.base, [inputs.experts[k] for k in order])
    one = Karcher(weights=weights).merge(inputs)
    other = Karcher(weights=tuple(weights[k] for k in order)).merge(turned)
    assert error_of(one, other, inputs) < 4e-6


@fast
@given(cases(dtypes=st.just(torch.float32)), st.data())
def test_equal_parents_give_themselves(inputs, data):
    n = len(inputs.experts)
    same = inputs_of(inputs.base, [inputs.experts[0]] * n)
    weights = data.draw(weights_for(POSITIVE, n))
    for space in ("raw", "delta"):
        for compat in ("paper", "mergekit"):
            merged = Karcher(weights=weights, space=space, compat=compat).merge(same)
            assert error_of(merged, same.experts[0], same) < 2e-6


def test_a_model_equal_to_the_base_only_shortens_the_mean():
    base, (a, b) = random_tensors((4, 5), 2)
    two = Karcher(weights=(1.0, 1.0)).merge(inputs_of(base, [a, b])).double() - base
    three = Karcher(weights=(1.0, 1.0, 1.0)).merge(inputs_of(base, [a, b, base])).double() - base
    assert relative_error(three, two * 2 / 3) < 1e-5


def test_opposed_task_vectors_have_no_mean_and_are_interpolated_linearly():
    base, (a,) = random_tensors((4, 4), 1)
    inputs = inputs_of(base, [a, base - (a - base)])
    assert relative_error(Karcher(weights=(1.0, 1.0)).merge(inputs), base) < 1e-6
    # mergekit begins at the first model and stays there: the order of the models decides.
    inputs = inputs_of(torch.zeros(4, 4), [a, -a])
    merged = Karcher(weights=(1.0, 1.0), compat="mergekit").merge(inputs)
    assert relative_error(merged, a) < 1e-6


def test_mergekit_mode_leaves_out_what_is_shorter_than_tol():
    base = torch.zeros(2)
    inputs = inputs_of(base, [torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1e-6])])
    ours = Karcher(weights=(0.5, 0.5), tol=1e-5).merge(inputs)
    theirs = Karcher(weights=(0.5, 0.5), tol=1e-5, compat="mergekit").merge(inputs)
    assert abs(float(ours[1] / ours[0]) - 1.0) < 1e-4
    assert float(theirs[1]) == 0.0


def test_weights_move_the_mean_where_mergekits_are_all_equal():
    angle = math.radians(80.0)
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([math.cos(angle), math.sin(angle)])
    for weight in (0.2, 0.5, 0.9):
        merged = Karcher(weights=(1.0 - weight, weight)).merge(inputs_of(None, [a, b]))
        found = math.degrees(math.atan2(merged[1], merged[0]))
        assert found == pytest.approx(80.0 * weight, abs=1e-4)


def test_cosines_of_bf16_tensors_are_float64():
    """mergekit multiplies in bf16, where fine-tunes of one base all have cosine 1."""
    _, experts = random_tensors((60, 60), 3, dtype=torch.bfloat16, scale=0.02)
    wide = inputs_of(None, [expert.float() for expert in experts])
    narrow = inputs_of(None, experts, out_dtype=torch.float32)
    operator = Karcher(weights=(1.0, 2.0, 4.0))
    assert torch.equal(operator.merge(narrow), operator.merge(wide))
    mean = sum(w * e.double() for w, e in zip((1, 2, 4), experts, strict=True)) / 7.0
    assert float(operator.merge(narrow).double().norm()) > float(mean.norm()) * (1 + 1e-5)


def test_fewer_steps_stop_earlier():
    base, experts = random_tensors((4, 4), 3)
    inputs = inputs_of(base, experts)
    start = Karcher(weights=(1.0, 2.0, 4.0), max_iter=0).merge(inputs)
    one = Karcher(weights=(1.0, 2.0, 4.0), max_iter=1).merge(inputs)
    end = Karcher(weights=(1.0, 2.0, 4.0), max_iter=200, tol=0.0).merge(inputs)
    assert float((start - end).norm()) > 2.0 * float((one - end).norm()) > 0.0
    loose = Karcher(weights=(1.0, 2.0, 4.0), tol=10.0).merge(inputs)
    assert torch.equal(loose, start)


def test_wrong_parameters_are_refused():
    for changes, message in (
        ({"weights": (0.0, 0.0)}, "karcher: the weights"),
        ({"weights": (1.0, -0.1)}, "weights is -0.1, must be at least 0"),
        ({"max_iter": -1}, "max_iter is -1"),
        ({"tol": float("nan")}, "tol is nan"),
    ):
        with pytest.raises(ConfigError, match=message):
            dataclasses.replace(Karcher(weights=(1.0, 1.0)), **changes)


def test_opposite_changes_of_one_number_have_the_mean_length():
    """Their cosines are 1 and -1 but for rounding, which the nearly cancelling sum magnifies."""
    sample = Sample((1,), torch.float32, ("near",) * 16, seed=13561)
    weights = (0.81, *(0.0,) * 7, 0.43, 0.92, 0.57, 0.72, *(0.0,) * 4)
    merged = Karcher(weights=weights).merge(sample.inputs)
    lengths = [w * abs(float(d)) for w, d in zip(weights, sample.inputs.deltas, strict=True)]
    change = abs(float(merged - sample.inputs.base))
    assert change == pytest.approx(sum(lengths) / sum(weights), rel=1e-4)
