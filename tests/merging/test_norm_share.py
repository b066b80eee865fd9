"""Norm shares against the formula in float64, at the level of a tensor, a layer and the model."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evomerge.core.recipe import Recipe
from evomerge.core.tensor_names import place
from evomerge.errors import ConfigError
from evomerge.merging.materialize import materialize
from evomerge.merging.norm_share import NormShare
from evomerge.merging.operator import TensorInputs
from tests.merging.memory_source import make_sources, space_of
from tests.merging.tensors import inputs_of, random_tensors, relative_error
from tests.merging.test_properties import POSITIVE, cases, error_of, fast, weights_for

QS = st.sampled_from([-1.0, -0.3, 0.5, 1.0, 2.0])


def oracle(inputs, weights, q, lambda_=1.0):
    lengths = [float(d.double().norm()) for d in inputs.deltas]
    longest = max(lengths) or 1.0
    sizes = [
        w * (n / longest) ** (2 * q) if n > 0 else 0.0
        for w, n in zip(weights, lengths, strict=True)
    ]
    total = sum(sizes) or 1.0
    delta = sum(s / total * d.double() for s, d in zip(sizes, inputs.deltas, strict=True))
    return inputs.base.double() + lambda_ * delta


@fast
@given(cases(max_experts=8), st.data(), QS, st.sampled_from([0.0, 0.4, 1.0]))
def test_norm_share_matches_the_formula(inputs, data, q, lambda_):
    weights = data.draw(weights_for(POSITIVE, len(inputs.experts)))
    inputs = dataclasses.replace(inputs, out_dtype=torch.float32)
    merged = NormShare(weights=weights, q=q, lambda_=lambda_).merge(inputs)
    assert error_of(merged, oracle(inputs, weights, q, lambda_), inputs) < 2e-6


@fast
@given(cases(dtypes=st.just(torch.float32)), st.data())
def test_exponent_zero_is_the_weighted_mean(inputs, data):
    weights = data.draw(weights_for(POSITIVE, len(inputs.experts)))
    merged = NormShare(weights=weights, q=0.0).merge(inputs)
    shares = np.array(weights) / sum(weights)
    mean = sum(s * e.double() for s, e in zip(shares, inputs.experts, strict=True))
    assert error_of(merged, mean, inputs) < 2e-6


@fast
@given(cases(), st.data(), QS)
def test_a_one_hot_weight_gives_that_expert_bit_for_bit(inputs, data, q):
    n = len(inputs.experts)
    k = data.draw(st.integers(0, n - 1))
    merged = NormShare(weights=tuple(0.7 * (i == k) for i in range(n)), q=q).merge(inputs)
    assert torch.equal(merged, inputs.experts[k])


@fast
@given(cases(), st.data(), QS)
def test_no_scale_gives_the_base_bit_for_bit(inputs, data, q):
    weights = data.draw(weights_for(POSITIVE, len(inputs.experts)))
    merged = NormShare(weights=weights, q=q, lambda_=0.0).merge(inputs)
    assert torch.equal(merged, inputs.base)


@fast
@given(cases(min_experts=2, dtypes=st.just(torch.float32)), st.data(), QS)
def test_order_scale_and_sign(inputs, data, q):
    n = len(inputs.experts)
    order = data.draw(st.permutations(range(n)))
    weights = data.draw(weights_for(POSITIVE, n))
    merged = NormShare(weights=weights, q=q).merge(inputs)
    turned = inputs_of(inputs.base, [inputs.experts[k] for k in order])
    moved = NormShare(weights=tuple(weights[k] for k in order), q=q).merge(turned)
    assert error_of(merged, moved, inputs) < 2e-6
    zero = torch.zeros_like(inputs.base)
    near = NormShare(weights=weights, q=q).merge(inputs_of(zero, inputs.deltas)).double()
    for factor in (-1.0, 8.0):
        far = inputs_of(zero, [factor * d for d in inputs.deltas])
        assert error_of(NormShare(weights=weights, q=q).merge(far), factor * near, far) < 2e-6


def test_experts_without_a_change_have_no_share_unless_q_is_zero():
    base, (a,) = random_tensors((3, 3), 1)
    inputs = inputs_of(base, [a, base.clone()])
    for q in (-1.0, 1.0):
        assert torch.equal(NormShare(weights=(0.5, 0.5), q=q).merge(inputs), a)
    half = NormShare(weights=(0.5, 0.5), q=0.0).merge(inputs)
    assert relative_error(half, 0.5 * (a.double() + base)) < 1e-6


def test_very_large_and_small_norms_do_not_overflow():
    base = torch.zeros(4)
    inputs = inputs_of(base, [torch.full((4,), 1e30), torch.full((4,), 1e-30)])
    merged = NormShare(weights=(1.0, 1.0), q=2.0).merge(inputs)
    assert torch.equal(merged, inputs.experts[0])
    assert torch.isfinite(NormShare(weights=(1.0, 1.0), q=-1.0).merge(inputs)).all()


@pytest.mark.parametrize("level", ["tensor", "layer", "model"])
def test_levels_share_norms_over_their_tensors(level):
    sources = make_sources(2)
    for name, tensor in sources["e2"].tensors.items():
        base = sources["base"].tensors[name]
        factor = 1.0 + 0.5 * len(name)
        sources["e2"].tensors[name] = base + factor * (tensor - base)
    space = space_of(sources)

    def label(name):
        where = place(name)
        group = where.section if where.layer is None else where.layer
        return {"tensor": name, "layer": group, "model": ""}[level]

    squares = {}
    for name, base in sources["base"].tensors.items():
        row = [
            float((sources[e].tensors[name].double() - base).square().sum()) for e in ("e1", "e2")
        ]
        squares[label(name)] = np.add(row, squares.get(label(name), 0.0))
    # A recipe over the sources in another order than the space's.
    params = {"weights": np.array([[0.6, 0.4]])}
    recipe = Recipe("norm_share", ("base", "e2", "e1"), params, settings={"level": level})
    for name, merged in materialize(recipe, space, sources):
        one, two = squares[label(name)] * (0.4, 0.6)
        base = sources["base"].tensors[name].double()
        d1, d2 = (sources[e].tensors[name].double() - base for e in ("e1", "e2"))
        expected = base + (one * d1 + two * d2) / (one + two)
        torch.testing.assert_close(merged.double(), expected, rtol=1e-6, atol=2e-6, msg=name)


def test_wrong_parameters_are_refused():
    with pytest.raises(ConfigError, match="weights are all zero"):
        NormShare(weights=(0.0, 0.0))
    with pytest.raises(ConfigError, match="weights is -1, must be at least 0"):
        NormShare(weights=(-1.0, 2.0))
    with pytest.raises(ConfigError, match="level is 'block'"):
        NormShare(weights=(1.0,), level="block")
    base, experts = random_tensors((2,), 2)
    bare = TensorInputs("w", base, tuple(experts), torch.float32)
    with pytest.raises(ConfigError, match="without Gram matrices"):
        NormShare(weights=(1.0, 1.0), level="model").merge(bare)
