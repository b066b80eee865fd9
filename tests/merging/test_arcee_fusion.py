from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evomerge.errors import ConfigError
from evomerge.merging import fused
from evomerge.merging.arcee_fusion import ArceeFusion, outlier_threshold
from tests.merging.tensors import inputs_of, random_tensors
from tests.merging.test_properties import cases, fast


def softmax(x):
    shifted = np.exp(x - x.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True) + 1e-8


def oracle(a, b, multiplier):
    """Scores and the threshold in float64."""
    a, b = (np.atleast_1d(tensor.double().numpy()) for tensor in (a, b))
    p, q = softmax(b), softmax(a)
    scores = np.abs(b - a) * (p * np.log(p / q)).sum(-1, keepdims=True)
    ordered = np.sort(scores.reshape(-1))
    first, median, third = (ordered[int(f * (ordered.size - 1))] for f in (0.25, 0.5, 0.75))
    return scores, median + multiplier * (third - first)


@fast
@given(cases(max_experts=1, dtypes=st.just(torch.float32)), st.floats(0.0, 4.0))
def test_it_matches_its_formula(inputs, multiplier):
    a, b = inputs.base, inputs.experts[0]
    merged = ArceeFusion(multiplier=multiplier).merge(inputs)
    scores, threshold = (torch.as_tensor(x).reshape(-1) for x in oracle(a, b, multiplier))
    is_b = merged == b
    assert (is_b | (merged == a)).all()
    edge = 1e-5 * threshold.abs() + 1e-14
    flat_merged, flat_a, flat_b = (tensor.reshape(-1) for tensor in (merged, a, b))
    taken, left = scores > threshold + edge, scores < threshold - edge
    assert torch.equal(flat_merged[taken], flat_b[taken])
    assert torch.equal(flat_merged[left], flat_a[left])


def test_passes_of_any_length_take_over_the_same():
    base, experts = random_tensors((3, 20_000), 1)
    found = []
    for length in (1, 9000, 1 << 17):
        with mock.patch.object(fused, "_CPU_PASS", length):
            found.append(ArceeFusion().merge(inputs_of(base, experts)))
    assert 0 < int((found[0] != base).sum()) < base.numel()
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_quartiles_are_exact_whatever_the_size():
    """mergekit draws them from a million random elements; ours do not depend on chance."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(1_200_000, generator=generator)
    ordered = scores.sort().values
    n = len(scores) - 1
    first, median, third = (float(ordered[int(f * n)]) for f in (0.25, 0.5, 0.75))
    expected = median + 1.5 * (third - first)
    assert outlier_threshold(scores, 1.5) == expected
    assert outlier_threshold(scores.flip(0), 1.5) == expected


def test_larger_multipliers_take_over_less():
    base, experts = random_tensors((30, 30), 1)
    inputs = inputs_of(base, experts)
    taken = [ArceeFusion(multiplier=m).merge(inputs) != base for m in (0.0, 1.5, 4.0)]
    counts = [int(mask.sum()) for mask in taken]
    assert counts[0] == 450 + 1
    assert counts == sorted(counts, reverse=True)
    assert (taken[2] <= taken[1]).all()


def test_two_models_are_fused_without_a_base():
    base, (a, b) = random_tensors((8, 8), 2)
    with_base = ArceeFusion().merge(inputs_of(base, [a, b]))
    assert torch.equal(with_base, ArceeFusion().merge(inputs_of(None, [a, b])))
    assert torch.equal(with_base, ArceeFusion().merge(inputs_of(a, [b])))
    with pytest.raises(ConfigError, match="arcee_fusion merges two models, got 3 experts"):
        ArceeFusion().merge(inputs_of(None, [a, b, base]))
