"""Property tests of the specification's §6 that apply to the built-in operators."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evomerge.merging.dare import DareLinear, DareTies
from evomerge.merging.linear import Linear
from evomerge.merging.nuslerp import NuSlerp
from evomerge.merging.slerp import Slerp
from evomerge.merging.task_arithmetic import TaskArithmetic
from evomerge.merging.ties import Ties
from tests.merging.tensors import inputs_of, relative_error

SHAPES = st.sampled_from([(), (1,), (1, 1), (1, 7), (3, 5), (9, 1), (2, 3, 5)])
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
FINITE = st.floats(-1.0, 1.5, allow_nan=False).map(lambda x: round(x, 3))
POSITIVE = st.floats(0.05, 1.0).map(lambda x: round(x, 3))

fast = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def error_of(got, expected, inputs):
    """max |got - expected| over the largest input or result: sums of large terms may cancel."""
    expected = torch.as_tensor(expected, dtype=torch.float64)
    sizes = [float(t.double().abs().max()) for t in (*inputs.sources, *inputs.deltas, expected)]
    return float((got.double() - expected).abs().max()) / max(*sizes, 1e-300)


def sort_threshold(inputs):
    def threshold(expert, density, exact):
        values = inputs.deltas[expert].abs().reshape(-1).sort(descending=True).values
        return float(values[max(int(density * len(values)), 1) - 1])

    return threshold


@st.composite
def cases(draw, *, min_experts=1, max_experts=5, dtypes=DTYPES):
    """TensorInputs with a base: ordinary, identical, zero-delta or far-away experts."""
    shape, dtype = draw(SHAPES), draw(dtypes)
    n = draw(st.integers(min_experts, max_experts))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    base = torch.randn(shape, generator=generator).to(dtype)
    experts = []
    for _ in range(n):
        kind = draw(st.sampled_from(["near", "near", "far", "zero"]))
        noise = torch.randn(shape, generator=generator)
        scale = {"near": 0.05, "far": 30.0, "zero": 0.0}[kind]
        experts.append((base.float() + scale * noise).to(dtype))
    inputs = inputs_of(base, experts)
    return dataclasses.replace(inputs, global_threshold=sort_threshold(inputs))


def weights_for(draw_from, n):
    return st.tuples(*[draw_from] * n)


@fast
@given(cases(), st.data())
def test_a_one_hot_weight_gives_that_expert_bit_for_bit(inputs, data):
    k = data.draw(st.integers(0, len(inputs.experts) - 1))
    one_hot = tuple(float(i == k) for i in range(len(inputs.experts)))
    expert = inputs.experts[k]
    for operator in (
        Linear(weights=(0.0, *one_hot)),
        Linear(weights=(0.0, *one_hot), normalize=False),
        TaskArithmetic(weights=one_hot),
        TaskArithmetic(weights=one_hot, normalize=True),
        DareLinear(weights=one_hot, density=1.0),
        DareLinear(weights=one_hot, density=1.0, compat="mergekit"),
    ):
        assert torch.equal(operator.merge(inputs), expert), operator


@fast
@given(cases(max_experts=1), st.sampled_from(["paper", "mergekit"]))
def test_untrimmed_ties_of_one_expert_gives_it_bit_for_bit(inputs, compat):
    for cls in (Ties, DareTies):
        operator = cls(weights=(1.0,), density=1.0, compat=compat)
        assert torch.equal(operator.merge(inputs), inputs.experts[0])


@fast
@given(cases(), st.data())
def test_no_scale_or_no_weights_give_the_base_bit_for_bit(inputs, data):
    n = len(inputs.experts)
    weights = data.draw(weights_for(FINITE, n))
    for operator in (
        TaskArithmetic(weights=(0.0,) * n),
        TaskArithmetic(weights=weights, lambda_=0.0),
        *(
            cls(weights=w, lambda_=s, compat=compat)
            for cls in (Ties, DareLinear, DareTies)
            for compat in ("paper", "mergekit")
            for w, s in (((0.0,) * n, 1.0), (weights, 0.0))
        ),
    ):
        assert torch.equal(operator.merge(inputs), inputs.base), operator


@fast
@given(cases(min_experts=2, max_experts=2))
def test_ends_of_the_arc_are_bit_exact(inputs):
    a, b = inputs.experts
    for operator, expected in (
        (Slerp(t=0.0), a),
        (Slerp(t=1.0), b),
        (Slerp(t=0.0, space="raw", compat="mergekit"), a),
        (Slerp(t=1.0, space="raw", compat="mergekit"), b),
        (NuSlerp(weights=(1.0, 0.0)), a),
        (NuSlerp(weights=(0.0, 1.0), flatten=False), b),
    ):
        assert torch.equal(operator.merge(inputs), expected), operator


@fast
@given(cases(dtypes=st.just(torch.float32)), st.data())
def test_equal_parents_give_themselves(inputs, data):
    theta = inputs.experts[0]
    n = len(inputs.experts)
    same = inputs_of(theta, [theta.clone() for _ in range(n)])
    same = dataclasses.replace(same, global_threshold=sort_threshold(same))
    apart = inputs_of(inputs.base, [theta.clone() for _ in range(n)])
    apart = dataclasses.replace(apart, global_threshold=sort_threshold(apart))
    weights = data.draw(weights_for(POSITIVE, n))
    for operator in (
        Linear(weights=(0.3, *weights)),
        TaskArithmetic(weights=weights),
        Ties(weights=weights),
        DareLinear(weights=weights),
        DareTies(weights=weights),
    ):
        assert error_of(operator.merge(same), theta, same) < 2e-6, operator
    scale = apart.base.abs().max() + theta.abs().max()
    for operator in (
        TaskArithmetic(weights=weights, normalize=True),
        Ties(weights=weights, density=1.0, compat="mergekit"),
        Ties(weights=(1.0,) * n, density=1.0),
    ):
        gap = (operator.merge(apart).double() - theta.double()).abs().max()
        assert float(gap) <= 2e-6 * float(scale), operator


@fast
@given(cases(min_experts=2, dtypes=st.just(torch.float32)), st.data())
def test_the_order_of_the_parents_does_not_matter(inputs, data):
    n = len(inputs.experts)
    order = data.draw(st.permutations(range(n)))
    weights = data.draw(weights_for(POSITIVE, n))
    turned = inputs_of(
        inputs.base,
        [inputs.experts[k] for k in order],
        keys=[inputs.source_keys[k] for k in order],
    )
    turned = dataclasses.replace(turned, global_threshold=sort_threshold(turned))
    moved = tuple(weights[k] for k in order)
    for cls, fixed in (
        (TaskArithmetic, {}),
        (Ties, {}),
        (Ties, {"compat": "mergekit"}),
        (DareLinear, {}),
        (DareTies, {"compat": "mergekit"}),
    ):
        one = cls(weights=weights, **fixed).merge(inputs)
        other = cls(weights=moved, **fixed).merge(turned)
        assert error_of(one, other, inputs) < 2e-6, cls
    one = Linear(weights=(0.2, *weights)).merge(inputs)
    assert error_of(one, Linear(weights=(0.2, *moved)).merge(turned), inputs) < 2e-6


def scaled(inputs, factor):
    """The same experts with their task vectors multiplied by `factor`, exactly."""
    zero = torch.zeros_like(inputs.base)
    near = inputs_of(zero, inputs.deltas)
    far = inputs_of(zero, [factor * d for d in inputs.deltas])
    return tuple(dataclasses.replace(x, global_threshold=sort_threshold(x)) for x in (near, far))


@fast
@given(
    cases(min_experts=2, max_experts=2, dtypes=st.just(torch.float32)),
    st.sampled_from([0.25, 2.0, 64.0]),
)
def test_delta_operators_scale_with_the_task_vectors(inputs, factor):
    near, far = scaled(inputs, factor)
    for operator in (
        TaskArithmetic(weights=(0.7, -0.2)),
        Ties(weights=(0.7, 0.4)),
        Ties(weights=(0.7, 0.4), compat="mergekit"),
        DareLinear(weights=(0.7, 0.4)),
        DareLinear(weights=(0.7, 0.4), compat="mergekit"),
        DareTies(weights=(0.7, 0.4)),
        Slerp(t=0.3),
        NuSlerp(weights=(0.7, 0.4)),
        NuSlerp(weights=(0.7, 0.4), flatten=False),
    ):
        gap = error_of(operator.merge(far), factor * operator.merge(near).double(), far)
        assert gap < 1e-6, operator


@fast
@given(cases(min_experts=2, max_experts=2, dtypes=st.just(torch.float32)))
def test_task_arithmetic_and_dare_are_odd(inputs):
    near, far = scaled(inputs, -1.0)
    for operator in (
        TaskArithmetic(weights=(0.7, -0.2)),
        DareLinear(weights=(0.7, 0.4)),
        DareLinear(weights=(0.7, 0.4), compat="mergekit"),
    ):
        assert error_of(operator.merge(far), -operator.merge(near).double(), far) < 1e-6


@fast
@given(cases(dtypes=st.just(torch.float32)), st.data(), st.sampled_from([0.5, 3.0]))
def test_normalised_ties_ignores_a_common_factor_of_the_weights(inputs, data, factor):
    weights = data.draw(weights_for(POSITIVE, len(inputs.experts)))
    for divisor in ("weights", "signed_weights"):
        one = Ties(weights=weights, divisor=divisor, sign="weighted")
        two = dataclasses.replace(one, weights=tuple(factor * w for w in weights))
        assert error_of(one.merge(inputs), two.merge(inputs), inputs) < 2e-6


@fast
@given(cases(dtypes=st.just(torch.float32)), st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_trimmed_supports_nest_in_the_density(inputs, d1, d2):
    low, high = sorted((d1, d2))
    expert = inputs_of(torch.zeros_like(inputs.base), [inputs.deltas[0]])
    for cls, fixed in (
        (Ties, {"threshold": "tensor", "vectors": "include"}),
        (DareLinear, {"vectors": "include", "rescale": "none"}),
    ):
        small = cls(weights=(1.0,), density=low, **fixed).merge(expert) != 0
        large = cls(weights=(1.0,), density=high, **fixed).merge(expert) != 0
        assert (small <= large).all()


@fast
@given(cases(), st.data())
def test_results_are_finite_and_keep_shape_and_dtype(inputs, data):
    n = len(inputs.experts)
    weights = data.draw(weights_for(FINITE, n))
    before = [tensor.clone() for tensor in inputs.sources]
    for operator in (
        Linear(weights=(0.1, *weights), normalize=False),
        TaskArithmetic(weights=weights),
        Ties(weights=weights),
        Ties(weights=weights, divisor="weights", sign="weighted"),
        DareLinear(weights=weights),
        DareTies(weights=weights, compat="mergekit"),
    ):
        merged = operator.merge(inputs)
        assert merged.shape == inputs.experts[0].shape
        assert merged.dtype == inputs.out_dtype
        assert torch.isfinite(merged).all()
    assert all(torch.equal(a, b) for a, b in zip(before, inputs.sources, strict=True))


@pytest.mark.parametrize("n_experts", [1, 2, 4, 16])
def test_many_experts_match_float64(n_experts):
    generator = torch.Generator().manual_seed(n_experts)
    base = torch.randn(33, 17, generator=generator)
    experts = [base + 0.1 * torch.randn(33, 17, generator=generator) for _ in range(n_experts)]
    weights = tuple(0.5 + 0.1 * k for k in range(n_experts))
    merged = TaskArithmetic(weights=weights, lambda_=0.2).merge(inputs_of(base, experts))
    tau = sum(w * (e.double() - base.double()) for w, e in zip(weights, experts, strict=True))
    expected = base.double() + 0.2 * tau
    # Coefficients up to 1 - 0.2 * sum(w) multiply the base, so errors grow with them.
    assert relative_error(merged, expected) < 1e-6 * max(1.0, 0.2 * sum(weights))
