"""Property rows of the specification's §6 for the element-wise methods beside TIES and DARE."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evomerge.merging.arcee_fusion import ArceeFusion
from evomerge.merging.breadcrumbs import Breadcrumbs, BreadcrumbsTies
from evomerge.merging.consensus import Consensus
from evomerge.merging.della import Della, DellaLinear
from evomerge.merging.localize_and_stitch import LocalizeAndStitch
from evomerge.merging.magmax import MagMax
from evomerge.merging.nearswap import NearSwap
from evomerge.merging.ram import Ram, RamPlus
from evomerge.merging.sce import Sce
from tests.merging.tensors import inputs_of, random_tensors
from tests.merging.test_properties import (
    FINITE,
    POSITIVE,
    cases,
    error_of,
    fast,
    scaled,
    sort_threshold,
    weights_for,
)

LINEAR = (DellaLinear, Breadcrumbs)
VOTING = (Della, BreadcrumbsTies)
SPARSE = (*LINEAR, *VOTING)
WEIGHTED = (*SPARSE, LocalizeAndStitch, Consensus)
UNWEIGHTED = (Sce, MagMax, Ram, RamPlus)


def operators(weights, **changes):
    """Every method with task vectors, in all its modes."""
    for cls in SPARSE:
        for compat in ("paper", "mergekit"):
            yield cls(weights=weights, compat=compat, **changes)
    for other in (LocalizeAndStitch, Consensus):
        yield other(weights=weights, **changes)
    for plain in UNWEIGHTED:
        yield plain(**changes)
    yield Sce(compat="mergekit", select=0.5, **changes)


@fast
@given(cases(), st.data())
def test_a_one_hot_weight_at_full_density_gives_that_expert_bit_for_bit(inputs, data):
    k = data.draw(st.integers(0, len(inputs.experts) - 1))
    one_hot = tuple(float(i == k) for i in range(len(inputs.experts)))
    for cls in LINEAR:
        for compat in ("paper", "mergekit"):
            operator = cls(weights=one_hot, density=1.0, compat=compat)
            assert torch.equal(operator.merge(inputs), inputs.experts[k]), operator


@fast
@given(cases(max_experts=1))
def test_one_untrimmed_expert_comes_back_bit_for_bit(inputs):
    for operator in (
        *(cls(weights=(1.0,), density=1.0) for cls in (*SPARSE, LocalizeAndStitch)),
        Consensus(weights=(1.0,)),
        MagMax(lambda_=1.0),
        Sce(select=1.0),
        Sce(select=1.0, compat="mergekit"),
        Ram(epsilon=0.0),
        RamPlus(epsilon=0.0),
    ):
        assert torch.equal(operator.merge(inputs), inputs.experts[0]), operator


@fast
@given(cases(), st.data())
def test_no_scale_or_no_weights_give_the_base_bit_for_bit(inputs, data):
    weights = data.draw(weights_for(FINITE, len(inputs.experts)))
    for operator in operators(weights, lambda_=0.0):
        assert torch.equal(operator.merge(inputs), inputs.base), operator
    for cls in WEIGHTED:
        operator = cls(weights=(0.0,) * len(weights))
        assert torch.equal(operator.merge(inputs), inputs.base), operator


@fast
@given(cases(dtypes=st.just(torch.float32)), st.data())
def test_parents_equal_to_the_base_give_it(inputs, data):
    n = len(inputs.experts)
    weights = data.draw(weights_for(POSITIVE, n))
    theta = inputs.experts[0]
    same = inputs_of(theta, [theta.clone() for _ in range(n)])
    same = dataclasses.replace(same, global_threshold=sort_threshold(same))
    for operator in operators(weights):
        assert error_of(operator.merge(same), theta, same) < 2e-6, operator
    pair = inputs_of(theta, [theta.clone()])
    for operator in (NearSwap(), NearSwap(compat="mergekit"), ArceeFusion()):
        assert torch.equal(operator.merge(pair), theta), operator


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
    for one, other in zip(operators(weights), operators(moved), strict=True):
        assert error_of(one.merge(inputs), other.merge(turned), inputs) < 5e-6, one


@fast
@given(
    cases(min_experts=2, max_experts=2, dtypes=st.just(torch.float32)),
    st.sampled_from([0.25, 2.0, 64.0]),
)
def test_delta_operators_scale_with_the_task_vectors(inputs, factor):
    near, far = scaled(inputs, factor)
    for operator in operators((0.7, 0.4)):
        is_absolute = isinstance(operator, Ram | RamPlus) or (
            isinstance(operator, Sce) and operator.compat == "mergekit"
        )
        if is_absolute:
            continue  # see their own tests
        gap = error_of(operator.merge(far), factor * operator.merge(near).double(), far)
        assert gap < 1e-6, operator


@fast
@given(cases(min_experts=2, max_experts=2, dtypes=st.just(torch.float32)))
def test_methods_without_a_vote_are_odd(inputs):
    near, far = scaled(inputs, -1.0)
    for operator in (
        *(cls(weights=(0.7, 0.4)) for cls in (*LINEAR, LocalizeAndStitch, Consensus)),
        MagMax(),
        Ram(),
        RamPlus(),
    ):
        assert error_of(operator.merge(far), -operator.merge(near).double(), far) < 1e-6, operator


@fast
@given(cases(), st.data())
def test_results_are_finite_and_keep_shape_and_dtype(inputs, data):
    weights = data.draw(weights_for(FINITE, len(inputs.experts)))
    before = [tensor.clone() for tensor in inputs.sources]
    for operator in operators(weights):
        merged = operator.merge(inputs)
        assert merged.shape == inputs.experts[0].shape
        assert merged.dtype == inputs.out_dtype
        assert torch.isfinite(merged).all(), operator
    assert all(torch.equal(a, b) for a, b in zip(before, inputs.sources, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_results_are_the_float32_ones_rounded_once(dtype):
    base, experts = random_tensors((9, 11), 3, dtype=dtype)
    inputs = inputs_of(base, experts)
    inputs = dataclasses.replace(inputs, global_threshold=sort_threshold(inputs))
    wide = dataclasses.replace(inputs, out_dtype=torch.float32)
    for operator in operators((0.7, 0.4, 0.2)):
        assert torch.equal(operator.merge(inputs), operator.merge(wide).to(dtype)), operator
