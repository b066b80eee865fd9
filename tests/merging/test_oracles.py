"""Every merge method against its float64 oracle (the specification's §6, last row)."""

from __future__ import annotations

import dataclasses
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.merging.oracle_cases import LINEAR
from tests.merging.oracle_cases_elementwise import ELEMENTWISE
from tests.merging.oracle_samples import KINDS, LONG, MAGNITUDES, SHAPES, Sample

CASES = {**LINEAR, **ELEMENTWISE}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Significand bits, the hidden one included; exponent of the smallest subnormal.
FORMAT = {torch.bfloat16: (8, -133), torch.float16: (11, -24)}
# These read the other model's tensor as well as its task vector, so an exact one does not apply.
ON_TENSORS = ("passthrough", "layer_swap", "nearswap", "nearswap mergekit", "arcee_fusion")
# Modes with sums over a tensor; `test_materialize` has every method at its defaults.
SUMS = ("l1", "mergekit", "rows", "columns", "filters", "raw", "sce", "arcee", "plus", "della")
THREADED = [name for name in CASES if any(part in name for part in SUMS)]

quick = settings(max_examples=15, deadline=None)


def ulp(values, dtype):
    """Return the distance of neighbouring numbers of `dtype` at each value."""
    bits, lowest = FORMAT[dtype]
    return np.exp2(np.maximum(np.frexp(np.abs(values))[1] - bits, lowest))


def check(case, sample):
    """Compare operator and oracle on one sample; False where the formula is ill-conditioned."""
    with np.errstate(under="ignore"):
        found = case.draw(sample)
    if found is not None:
        compare(sample, found)
    return found is not None


def compare(sample, found):
    """Assert what the operator gives: to 1e-6 in float32, to one rounding otherwise."""
    before = [tensor.clone() for tensor in sample.inputs.sources]
    merged = found.operator.merge(sample.inputs)
    assert all(torch.equal(a, b) for a, b in zip(before, sample.inputs.sources, strict=True))
    dtype = sample.inputs.out_dtype
    assert merged.dtype == dtype
    assert merged.shape == sample.inputs.experts[0].shape
    got = merged.double().numpy()
    is_sure = ~np.broadcast_to(found.undecided, got.shape)
    sizes = [sample.base, *sample.experts, *sample.deltas, found.expected]
    size = max(float(np.abs(x).max()) for x in sizes)
    # The second term: subnormal products are off by their spacing, and may be divided by a weight.
    tolerance = 1e-6 * size * found.gain + 2.0**-141 * found.gain
    if dtype == torch.float32:
        error = np.abs(got - found.expected)
        assert (error <= tolerance)[is_sure].all(), (found.operator, error.max() / size)
        return
    limit = torch.finfo(dtype).max
    clipped = np.clip(found.expected, -limit, limit)
    rounded = torch.as_tensor(clipped).float().to(dtype).double().numpy()
    step = ulp(np.maximum(np.abs(rounded), np.abs(got)), dtype)
    is_near = np.abs(got - rounded) <= step + tolerance
    assert is_near[is_sure].all(), (found.operator, np.abs(got - rounded).max() / size)
    # Off by one step only where the tolerance reaches over the middle between two numbers, which
    # many elements may share: 1.3 times five steps is half a step, give or take 1.3's rounding.
    low, high = (
        torch.as_tensor(np.clip(found.expected + side, -limit, limit)).to(dtype).double().numpy()
        for side in (-tolerance, tolerance)
    )
    is_off = ((got < low) | (got > high)) & is_sure & (np.abs(rounded) >= found.gain * size / 64.0)
    assert int(is_off.sum()) <= 1 + 0.01 * got.size, (found.operator, int(is_off.sum()))


@st.composite
def samples(draw, least, most):
    n = draw(st.integers(least, min(most, 5)) | st.sampled_from([least, most]))
    dtype = draw(st.sampled_from(DTYPES))
    return Sample(
        draw(st.sampled_from(SHAPES)),
        dtype,
        draw(st.lists(st.sampled_from(KINDS), min_size=n, max_size=n)),
        magnitude=draw(st.sampled_from(MAGNITUDES[dtype])),
        seed=draw(st.integers(0, 2**20)),
    )


@pytest.mark.parametrize("name", CASES)
@quick
@given(st.data())
def test_merges_match_their_formula_in_float64(name, data):
    case = CASES[name]
    check(case, data.draw(samples(case.least, case.most)))


@pytest.mark.parametrize("name", CASES)
def test_sixteen_experts_match_their_formula(name):
    case = CASES[name]
    n_checked = 0
    for seed, kinds in enumerate((("near",) * 16, ("near", "zero") * 8)):
        sample = Sample((17, 13), torch.float32, kinds[: case.most], seed=seed)
        n_checked += check(case, sample)
    assert n_checked


def fair_sample(name, shape, dtype, kinds):
    """Return a sample on which the method is well-conditioned, and its reference."""
    case = CASES[name]
    kinds = kinds[: min(max(case.least, 3), case.most)]
    first = zlib.crc32(name.encode())
    for seed in range(first, first + 5):
        sample = Sample(shape, dtype, kinds, seed=seed)
        found = case.draw(sample)
        if found is not None:
            return sample, found
    raise AssertionError(f"{name}: five samples in a row are ill-conditioned")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_tensors_longer_than_a_pass_match_their_formula(name, dtype):
    """One element more than 2**17: the last pass of a kernel is a partial one."""
    compare(*fair_sample(name, LONG, dtype, ("near", "near", "zero")))


@pytest.mark.parametrize("name", [name for name in CASES if name not in ON_TENSORS])
@quick
@given(st.integers(0, 2**20), st.sampled_from(SHAPES), st.sampled_from(DTYPES[1:]))
def test_exact_task_vectors_are_used_in_place_of_rounded_differences(name, seed, shape, dtype):
    case = CASES[name]
    n = min(max(case.least, 3), case.most)
    sample = Sample(shape, dtype, ("near",) * n, seed=seed, exact=True)
    check(case, sample)


@pytest.mark.parametrize("name", CASES)
def test_an_operator_gives_float32_when_asked_for_it(name):
    """One rounding: the float32 result of bf16 sources, rounded, is the bf16 result."""
    sample, found = fair_sample(name, (17, 13), torch.bfloat16, ("near",) * 3)
    narrow = found.operator.merge(sample.inputs)
    wide = found.operator.merge(dataclasses.replace(sample.inputs, out_dtype=torch.float32))
    assert torch.equal(narrow, wide.to(torch.bfloat16))


@pytest.mark.parametrize("name", THREADED)
def test_the_number_of_threads_changes_no_bit(name):
    sample, found = fair_sample(name, LONG, torch.float32, ("near",) * 3)
    before, merged = torch.get_num_threads(), []
    try:
        for n_threads in (1, 2, 3):
            torch.set_num_threads(n_threads)
            # Without the task vectors of the run before.
            merged.append(found.operator.merge(dataclasses.replace(sample.inputs)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(merged[0], merged[1])
    assert torch.equal(merged[0], merged[2])
