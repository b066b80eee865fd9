import math

import pytest
import torch

from evomerge.errors import ConfigError
from evomerge.merging.slerp import Slerp
from tests.merging.tensors import inputs_of, random_tensors, relative_error


def oracle(t, a, b):
    """SLERP in float64, written from the formula."""
    a, b = a.double(), b.double()
    cosine = float((a * b).sum() / (a.norm() * b.norm()))
    omega = math.acos(max(-1.0, min(1.0, cosine)))
    return (math.sin((1 - t) * omega) * a + math.sin(t * omega) * b) / math.sin(omega)


@pytest.mark.parametrize("t", [0.0, 0.25, 0.5, 1.0])
def test_without_a_base_it_is_slerp_of_the_two_models(t):
    a, (b,) = random_tensors((6, 4), 1, scale=1.0)
    merged = Slerp(t=t).merge(inputs_of(None, [a, b]))
    assert relative_error(merged, oracle(t, a, b)) < 1e-6


def test_base_and_one_expert_are_the_two_models():
    base, (expert,) = random_tensors((6, 4), 1, scale=1.0)
    merged = Slerp(t=0.3).merge(inputs_of(base, [expert]))
    assert relative_error(merged, oracle(0.3, base, expert)) < 1e-6


@pytest.mark.parametrize("space", ["auto", "delta"])
def test_with_a_base_and_two_experts_it_runs_on_task_vectors(space):
    base, (a, b) = random_tensors((6, 4), 2)
    merged = Slerp(t=0.3, space=space).merge(inputs_of(base, [a, b]))
    tau = oracle(0.3, a.double() - base.double(), b.double() - base.double())
    assert relative_error(merged, base.double() + tau) < 1e-6


def test_raw_space_ignores_the_base():
    base, (a, b) = random_tensors((6, 4), 2, scale=1.0)
    merged = Slerp(t=0.7, space="raw").merge(inputs_of(base, [a, b]))
    assert relative_error(merged, oracle(0.7, a, b)) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("space", ["raw", "delta"])
def test_both_ends_are_bit_exact(dtype, space):
    base, (a, b) = random_tensors((6, 4), 2, dtype=dtype, scale=3.0)
    inputs = inputs_of(base, [a, b])
    assert torch.equal(Slerp(t=0.0, space=space).merge(inputs), a)
    assert torch.equal(Slerp(t=1.0, space=space).merge(inputs), b)


def test_swapping_the_models_mirrors_t():
    a, (b,) = random_tensors((6, 4), 1, scale=1.0)
    one = Slerp(t=0.2).merge(inputs_of(None, [a, b]))
    other = Slerp(t=0.8).merge(inputs_of(None, [b, a]))
    assert relative_error(one, other) < 1e-6


def test_models_of_one_norm_keep_it():
    a, (b,) = random_tensors((6, 4), 1, scale=1.0)
    b = b * (a.norm() / b.norm())
    merged = Slerp(t=0.4).merge(inputs_of(None, [a, b]))
    assert float(merged.norm()) == pytest.approx(float(a.norm()), rel=1e-6)


def test_nearly_parallel_models_keep_the_arc_in_paper_mode_only():
    a, (b,) = random_tensors((40, 40), 1, scale=0.02)
    inputs = inputs_of(None, [a, b])
    chord = 0.5 * (a.double() + b.double())
    paper = Slerp(t=0.5).merge(inputs).double().norm()
    mergekit = Slerp(t=0.5, compat="mergekit").merge(inputs).double().norm()
    assert float(mergekit) == pytest.approx(float(chord.norm()), rel=1e-7)
    assert float(paper) > float(chord.norm()) * (1 + 1e-5)


def test_identical_antipodal_and_zero_tensors_are_interpolated_linearly():
    a, _ = random_tensors((6, 4), 0)
    assert relative_error(Slerp(t=0.3).merge(inputs_of(None, [a, a.clone()])), a) < 1e-6
    assert relative_error(Slerp(t=0.25).merge(inputs_of(None, [a, -a])), 0.5 * a) < 1e-6
    merged = Slerp(t=0.25).merge(inputs_of(None, [a, torch.zeros_like(a)]))
    assert relative_error(merged, 0.75 * a) < 1e-6


def test_wrong_numbers_of_models_are_refused():
    base, experts = random_tensors((2, 2), 3)
    with pytest.raises(ConfigError, match="slerp merges two models, got 3 experts"):
        Slerp().merge(inputs_of(None, experts))
    with pytest.raises(ConfigError, match="3 experts and a base"):
        Slerp().merge(inputs_of(base, experts))
    with pytest.raises(ConfigError, match="space: delta"):
        Slerp(space="delta").merge(inputs_of(base, experts[:1]))
    with pytest.raises(ConfigError, match="1 experts"):
        Slerp().merge(inputs_of(None, experts[:1]))


def test_a_merge_prepared_without_grams_is_refused():
    base, experts = random_tensors((2, 2), 1)
    inputs = inputs_of(base, experts)
    inputs = type(inputs)(**{**inputs.__dict__, "gram": None})
    with pytest.raises(ConfigError, match="prepared without Gram"):
        Slerp().merge(inputs)
