"""Model Stock against its formula in float64, its two ends, and mergekit's missing clamp."""

from __future__ import annotations

import dataclasses
from itertools import combinations
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evomerge.errors import ConfigError
from evomerge.merging import fused
from evomerge.merging.model_stock import ModelStock
from tests.merging.tensors import inputs_of, random_tensors, relative_error
from tests.merging.test_properties import cases, error_of, fast


def share(deltas):
    """t for the task vectors of one tensor or row."""
    deltas = [d.double().reshape(-1) for d in deltas]
    n, cosines = len(deltas), []
    for a, b in combinations(deltas, 2):
        product = float(a.norm() * b.norm())
        cosines.append(float(a @ b) / product if product > 0 else 0.0)
    c = sum(cosines) / len(cosines)
    return min(max(n * c / (1 + (n - 1) * c), 0.0), 1.0) if c > 0 else 0.0


def oracle(inputs):
    mean = sum(d.double() for d in inputs.deltas) / len(inputs.deltas)
    return inputs.base.double() + share(inputs.deltas) * mean


@fast
@given(cases(min_experts=2, max_experts=8), st.sampled_from([0.5, 1.0, 1.5]))
def test_model_stock_matches_the_formula(inputs, multiplier):
    inputs = dataclasses.replace(inputs, out_dtype=torch.float32)
    expected = inputs.base.double() + multiplier * (oracle(inputs) - inputs.base.double())
    merged = ModelStock(multiplier=multiplier).merge(inputs)
    assert error_of(merged, expected, inputs) < 4e-6


@fast
@given(cases(min_experts=2, max_experts=8))
def test_filter_wise_has_one_share_per_output_channel(inputs):
    inputs = dataclasses.replace(inputs, out_dtype=torch.float32)
    merged = ModelStock(filter_wise=True).merge(inputs)
    if inputs.is_vector:
        assert torch.equal(merged, ModelStock().merge(inputs))
        return
    for row in range(len(inputs.base)):
        part = inputs_of(inputs.base[row], [expert[row] for expert in inputs.experts])
        assert error_of(merged[row], oracle(part), part) < 4e-6


@fast
@given(cases(min_experts=2, dtypes=st.just(torch.float32)), st.booleans(), st.randoms())
def test_the_order_of_the_parents_does_not_matter(inputs, filter_wise, random):
    experts = list(inputs.experts)
    random.shuffle(experts)
    operator = ModelStock(filter_wise=filter_wise)
    merged = operator.merge(inputs_of(inputs.base, experts))
    assert error_of(operator.merge(inputs), merged, inputs) < 4e-6


@pytest.mark.parametrize("filter_wise", [False, True])
def test_parallel_task_vectors_give_the_mean(filter_wise):
    base, (a,) = random_tensors((4, 6), 1)
    experts = [a, base + 2.0 * (a - base), base + 0.5 * (a - base)]
    merged = ModelStock(filter_wise=filter_wise).merge(inputs_of(base, experts))
    assert relative_error(merged, torch.stack(experts).double().mean(0)) < 1e-6


@pytest.mark.parametrize("filter_wise", [False, True])
@pytest.mark.parametrize("sign", [0.0, -1.0])
def test_orthogonal_and_opposed_task_vectors_give_the_base(filter_wise, sign):
    base = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    a = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    b = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]) + sign * a
    merged = ModelStock(filter_wise=filter_wise).merge(inputs_of(base, [base + a, base + b]))
    assert relative_error(merged, base) < 1e-6


def test_equal_parents_give_themselves():
    base, (a,) = random_tensors((5, 3), 1)
    assert relative_error(ModelStock().merge(inputs_of(base, [a] * 4)), a) < 1e-6


def test_a_model_equal_to_the_base_agrees_with_nobody():
    base, (a,) = random_tensors((5, 3), 1)
    for filter_wise in (False, True):
        operator = ModelStock(filter_wise=filter_wise)
        merged = operator.merge(inputs_of(base, [a, a, base]))
        # c = 1 / 3, so t = 3 c / (1 + 2 c) = 0.6, of a mean that is 2 / 3 of the change.
        assert relative_error(merged, base.double() + 0.4 * (a.double() - base)) < 1e-6


def test_mergekit_extrapolates_away_from_the_experts_where_they_disagree():
    base = torch.zeros(3)
    experts = [torch.tensor(x) for x in ([1.0, 0.0, 0.2], [-0.5, 1.0, 0.0], [-0.5, -1.0, 0.0])]
    inputs = inputs_of(base, experts)
    assert torch.equal(ModelStock().merge(inputs), base)
    mean = torch.stack(experts).mean(0)
    merged = ModelStock(compat="mergekit").merge(inputs)
    assert float(merged @ mean) < -float(mean @ mean), "t below -1"


def test_mergekit_takes_small_parallel_changes_for_orthogonal_ones():
    base, (a,) = random_tensors((4, 4), 1)
    small = 1e-5 * (a - base)
    inputs = inputs_of(torch.zeros(4, 4), [small, small])
    assert relative_error(ModelStock().merge(inputs), small) < 1e-6
    merged = ModelStock(compat="mergekit").merge(inputs)
    assert float(merged.norm()) < 0.01 * float(small.norm())


def test_mergekits_filters_of_a_convolution_run_along_the_last_axis():
    base, experts = random_tensors((2, 3, 4), 2, scale=1.0)
    merged = ModelStock(filter_wise=True, compat="mergekit").merge(inputs_of(base, experts))
    for i in range(2):
        for j in range(3):
            row = inputs_of(base[i, j], [expert[i, j] for expert in experts])
            expected = ModelStock(compat="mergekit").merge(row)
            assert relative_error(merged[i, j], expected) < 1e-5


def test_neither_the_number_of_threads_nor_the_length_of_passes_changes_a_bit():
    base, experts = random_tensors((2, 300_001), 2, scale=1.0)
    operator = ModelStock(filter_wise=True)
    before, found = torch.get_num_threads(), []
    # A common part, so that t is not 0.
    inputs = inputs_of(base, [expert + 1.0 for expert in experts])
    try:
        for n_threads, length in ((1, 1), (2, 5000), (3, 1 << 20), (1, 1 << 17)):
            torch.set_num_threads(n_threads)
            with mock.patch.object(fused, "_CPU_PASS", length):
                found.append(operator.merge(inputs))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0], other) for other in found[1:])
    for row in range(2):
        part = inputs_of(base[row], [expert[row] for expert in inputs.experts])
        assert 0.0 < share(part.deltas) < 1.0
        assert error_of(found[0][row], oracle(part), part) < 4e-6


def test_one_expert_is_refused():
    base, experts = random_tensors((2, 2), 1)
    with pytest.raises(ConfigError, match=r"w: model_stock measures.*at least two"):
        ModelStock().merge(inputs_of(base, experts))
    with pytest.raises(ConfigError, match="multiplier is -1, must be at least 0"):
        ModelStock(multiplier=-1.0)
