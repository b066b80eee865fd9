"""What holds for every registered merge method, in every mode, on any tensor.

The registry says what is tried, so a new method is in here the moment it is registered. Rows of the
specification's §6 that only some methods promise are in `test_properties`,
`test_elementwise_properties` and `test_invariances`; formulas are in `test_oracles`.
"""

from __future__ import annotations

import dataclasses
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from evomerge.core.genes import gene_fields
from evomerge.errors import ConfigError
from evomerge.merging import fused, sign_consensus
from evomerge.merging.grams import gram_of
from evomerge.merging.operator import merge_operators
from tests.merging.memory_of_merges import N_EXPERTS, inputs_for, operators_of
from tests.merging.modes import n_experts_of, operators, samples
from tests.merging.oracle_samples import KINDS
from tests.merging.tensors import inputs_of
from tests.merging.test_oracles import CASES

NAMES = merge_operators.names()
CLASSES = {name: merge_operators.get(name) for name in NAMES}
every = pytest.mark.parametrize("name", NAMES)
quick = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])

SINGLE = (torch.float32,)
HALVES = (torch.bfloat16, torch.float16)
# These look at the size of the task vectors, by their definition (operators.md, section 6).
ABSOLUTE = {"ram", "ram_plus", "arcee_fusion"}
# The place of an expert says what becomes of it.
ORDERED = {"layer_swap", "slerp", "nearswap", "arcee_fusion"}


def on_task_vectors(names=NAMES):
    return pytest.mark.parametrize("name", [name for name in names if CLASSES[name].needs_base])


def drawn(data, name, *, fixed=None, **how):
    """Return inputs and an operator for them."""
    n = data.draw(n_experts_of(name, CLASSES[name]))
    inputs = data.draw(samples(n, **how)).inputs
    operator = data.draw(operators(CLASSES[name], n, **(fixed or {})))
    return dataclasses.replace(inputs, name="model.layers.1.mlp.w.weight", n_layers=3), operator


def merge(operator, inputs):
    """Return a merge of its own; draws for which the method refuses to be computed do not count."""
    try:
        return operator.merge(dataclasses.replace(inputs)).clone()
    except ConfigError:  # weights whose sum is 0, directions that cancel
        assume(False)


def gap(got, expected, inputs):
    """Return max |got - expected| over the largest number in sight."""
    sizes = [*inputs.sources, *inputs.deltas, got, expected]
    largest = max(float(tensor.double().abs().max()) for tensor in sizes)
    return float((got.double() - expected.double()).abs().max()) / max(largest, 1e-300)


def test_every_operator_has_a_float64_oracle():
    assert {name.split()[0] for name in CASES} - {"layer_scale"} == set(NAMES)


@every
@quick
@given(st.data())
def test_results_are_finite_of_their_shape_and_dtype_and_repeat(name, data):
    inputs, operator = drawn(data, name, kinds=KINDS)
    before = [tensor.clone() for tensor in inputs.sources]
    merged = merge(operator, inputs)
    assert merged.shape == inputs.experts[0].shape
    assert merged.dtype == inputs.out_dtype
    assert torch.isfinite(merged).all(), operator
    assert torch.equal(merge(operator, inputs), merged), operator
    assert all(map(torch.equal, before, inputs.sources)), operator


@pytest.mark.parametrize("name", [name for name in NAMES if hasattr(CLASSES[name], "fallback")])
@quick
@given(st.data())
def test_routers_are_left_whole_as_norms_are(name, data):
    """Every element counts: the merge of a router is that of the same numbers as a vector."""
    inputs, operator = drawn(data, name, dtypes=SINGLE)
    router = dataclasses.replace(inputs, name="model.layers.1.mlp.gate.weight")
    how = operator.fallback(router.name, (3, 4))
    vector = operator.fallback("", (12,))
    assert how == (vector and vector.replace("at most one axis", "router"))
    if how is None:  # mergekit's rules
        return
    flat = dataclasses.replace(
        router, base=inputs.base.reshape(-1), experts=tuple(e.reshape(-1) for e in inputs.experts)
    )
    assert torch.equal(merge(operator, router).reshape(-1), merge(operator, flat)), operator


@every
@quick
@given(st.data())
def test_halves_are_the_float32_result_rounded_once(name, data):
    inputs, operator = drawn(data, name, dtypes=HALVES)
    wide = merge(operator, dataclasses.replace(inputs, out_dtype=torch.float32))
    assert torch.equal(merge(operator, inputs), inputs.round(wide)), operator


@every
@quick
@given(st.data())
def test_passes_of_any_length_give_the_same_bits(name, data):
    inputs, operator = drawn(data, name, kinds=KINDS)
    merged = merge(operator, inputs)
    length = data.draw(st.sampled_from([1, 2, 7, 64]))
    with (
        mock.patch.object(fused, "_CPU_PASS", length),
        mock.patch.object(sign_consensus, "_CPU_CHUNK", length),
    ):
        assert torch.equal(merge(operator, inputs), merged), operator


@pytest.mark.slow  # every mode and number of experts is compiled anew
@every
@quick
@given(st.data())
def test_compiled_kernels_give_the_bits_of_plain_torch(name, data):
    inputs, operator = drawn(data, name, dtypes=(torch.float32, torch.bfloat16), kinds=KINDS)
    compiled = dataclasses.replace(inputs, least_compiled=1)
    assert torch.equal(merge(operator, compiled), merge(operator, inputs)), operator


@pytest.mark.parametrize(
    "least_compiled",
    [pytest.param(1, marks=pytest.mark.slow), pytest.param(fused.MIN_ELEMENTS, id="torch")],
)
@every
def test_numbers_that_are_none_are_not_merged_away(name, least_compiled):
    """A merge that is not finite is refused; one that hides a broken expert would not be."""
    n = CLASSES[name].n_models or N_EXPERTS
    sound = inputs_for((64, 64), n)
    for broken in range(n):
        experts = [expert.clone() for expert in sound.experts]
        experts[broken].view(-1)[::97] = float("nan")
        gram = gram_of((sound.base, *experts))
        inputs = dataclasses.replace(
            sound,
            experts=tuple(experts),
            gram=gram,
            pooled_gram=lambda _, gram=gram: gram,
            least_compiled=least_compiled,
        )
        for mode, operator in operators_of(CLASSES[name], n):
            merged = operator.merge(inputs)
            assert not merged.isfinite().all(), (mode, broken)
            assert merged not in inputs.finite, (mode, broken)


@every
@quick
@given(st.data())
def test_the_place_of_the_result_changes_no_bit(name, data):
    """Written over what was there before, as into a resident model."""
    inputs, operator = drawn(data, name, kinds=KINDS)
    merged = merge(operator, inputs)
    into = torch.full(merged.shape, float("nan"), dtype=merged.dtype)
    assert torch.equal(merge(operator, dataclasses.replace(inputs, into=into)), merged), operator


@pytest.mark.parametrize("name", [name for name in NAMES if CLASSES[name].sliceable])
@quick
@given(st.data())
def test_a_slice_of_the_merge_is_the_merge_of_the_slice(name, data):
    inputs, operator = drawn(data, name)
    merged = merge(operator, inputs).reshape(-1)
    ends = st.integers(0, merged.numel())
    start, stop = sorted(data.draw(st.tuples(ends, ends)))
    assume(start < stop)
    part = dataclasses.replace(
        inputs,
        base=inputs.base.reshape(-1)[start:stop],
        experts=tuple(expert.reshape(-1)[start:stop] for expert in inputs.experts),
        gram=None,
    )
    assert torch.equal(merge(operator, part), merged[start:stop]), operator


@on_task_vectors()
@quick
@given(st.data())
def test_experts_equal_to_the_base_give_it(name, data):
    """To rounding: coefficients of up to 36 cancel. In a run such tensors are copied instead."""
    inputs, operator = drawn(data, name, dtypes=SINGLE, kinds=("zero",))
    assert gap(merge(operator, inputs), inputs.base, inputs) < 1e-5, operator


@on_task_vectors([n for n in NAMES if any(g.name == "lambda_" for g in gene_fields(CLASSES[n]))])
@quick
@given(st.data())
def test_a_scale_of_zero_gives_the_base_bit_for_bit(name, data):
    inputs, operator = drawn(data, name, kinds=KINDS, fixed={"lambda_": 0.0})
    assert torch.equal(merge(operator, inputs), inputs.base), operator


@on_task_vectors([n for n in NAMES if n not in ABSOLUTE])
@quick
@given(st.data(), st.sampled_from([0.25, 64.0]))
def test_task_vectors_that_are_longer_give_a_change_that_is_longer(name, data, factor):
    """Powers of two: rounding scales with them."""
    has_modes = any(item.name == "compat" for item in dataclasses.fields(CLASSES[name]))
    fixed = {"compat": "paper"} if has_modes else None
    inputs, operator = drawn(data, name, dtypes=SINGLE, fixed=fixed)
    zero = torch.zeros_like(inputs.base)
    near, far = (
        dataclasses.replace(
            inputs_of(zero, [scale * delta for delta in inputs.deltas]),
            name=inputs.name,
            n_layers=inputs.n_layers,
            global_threshold=lambda k, d, e=True, s=scale: s * inputs.global_threshold(k, d, e),
            pooled_gram=lambda _, s=scale: s**2 * inputs.pooled_gram("model"),
        )
        for scale in (1.0, factor)
    )
    merged = merge(operator, far)
    assert gap(merged, factor * merge(operator, near), far) < 1e-6, operator


@pytest.mark.parametrize("name", sorted(set(NAMES) - ORDERED))
@quick
@given(st.data())
def test_the_order_of_the_experts_does_not_matter(name, data):
    inputs, operator = drawn(data, name, dtypes=SINGLE)
    n = len(inputs.experts)
    order = data.draw(st.permutations(range(n)))
    turned = dataclasses.replace(
        inputs_of(
            inputs.base,
            [inputs.experts[k] for k in order],
            keys=[inputs.source_keys[k] for k in order],
        ),
        name=inputs.name,
        n_layers=inputs.n_layers,
        global_threshold=lambda k, d, e=True: inputs.global_threshold(order[k], d, e),
        pooled_gram=lambda pool: inputs.pooled_gram(pool)[[0, *(k + 1 for k in order)]][
            :, [0, *(k + 1 for k in order)]
        ],
    )
    rows = {}
    for item in gene_fields(type(operator)):
        if item.per_source:
            row = getattr(operator, item.name)
            first = len(row) - n
            rows[item.name] = (*row[:first], *(row[first + k] for k in order))
    moved = dataclasses.replace(operator, **rows)
    merged = merge(operator, inputs)
    assert gap(merged, merge(moved, turned), inputs) < 1e-5, operator
