import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evomerge.merging.breadcrumbs import Breadcrumbs, BreadcrumbsTies, band
from evomerge.merging.quantiles import magnitude_threshold
from evomerge.merging.sign_consensus import trim
from evomerge.merging.task_arithmetic import TaskArithmetic
from tests.merging.tensors import inputs_of, random_tensors
from tests.merging.test_properties import cases, error_of, fast


def in_band(delta, n_wanted, n_top):
    inputs = inputs_of(torch.zeros_like(delta), [delta])
    keep = band(inputs, 0, n_wanted, n_top, exact=True)
    return delta * ((delta.abs() >= keep.low) & (delta.abs() <= keep.high))


def oracle(inputs, weights, *, density, gamma, lambda_, vote, compat):
    """Both methods on one tensor in float64, by sorting. Ties are kept as one block."""
    base = inputs.base.double().numpy()
    deltas = np.stack([delta.double().numpy() for delta in inputs.deltas])
    w = np.array(weights).reshape(-1, *[1] * base.ndim)
    is_exempt = compat == "paper" and base.ndim <= 1
    if not is_exempt:
        kept = np.zeros_like(deltas)
        for k, delta in enumerate(deltas):
            n = delta.size
            n_wanted = int(density * n) if compat == "mergekit" else max(int(density * n), 1)
            n_top = min(int(gamma * n), n - n_wanted)
            order = np.sort(np.abs(delta).reshape(-1))[::-1][n_top : n_top + n_wanted]
            if n_wanted:
                kept[k] = delta * np.isin(np.abs(delta), order)
        deltas = kept
    if not vote or is_exempt:
        return base + lambda_ * (w * deltas).sum(0)
    elected = np.where(((w * deltas) if compat == "mergekit" else deltas).sum(0) >= 0, 1, -1)
    return base + lambda_ * (w * deltas * (np.sign(deltas) == elected)).sum(0)


@fast
@given(
    cases(dtypes=st.just(torch.float32)),
    st.floats(0.0, 1.0),
    st.floats(0.0, 1.0),
    st.booleans(),
    st.sampled_from(["paper", "mergekit"]),
)
def test_both_methods_match_their_formula(inputs, density, gamma, vote, compat):
    weights = tuple(0.2 + 0.3 * k for k in range(len(inputs.experts)))
    cls = BreadcrumbsTies if vote else Breadcrumbs
    merged = cls(weights=weights, density=density, gamma=gamma, lambda_=0.8, compat=compat).merge(
        inputs
    )
    expected = oracle(
        inputs, weights, density=density, gamma=gamma, lambda_=0.8, vote=vote, compat=compat
    )
    assert error_of(merged, expected, inputs) < 2e-6


def test_the_largest_and_the_smallest_go():
    delta = torch.tensor([5.0, -4.0, 3.0, -2.0, 1.0])
    assert in_band(delta, 3, 1).tolist() == [0.0, -4.0, 3.0, -2.0, 0.0]
    assert in_band(delta, 3, 4).tolist() == [0.0, 0.0, 3.0, -2.0, 1.0]
    assert in_band(delta, 5, 2).tolist() == delta.tolist()
    assert in_band(delta, 0, 2).tolist() == [0.0] * 5


@fast
@given(cases(max_experts=1, dtypes=st.just(torch.float32)), st.floats(0.0, 1.0))
def test_gamma_zero_is_a_magnitude_trim(inputs, density):
    delta = inputs.deltas[0]
    n_wanted = max(int(density * delta.numel()), 1)
    trimmed = trim(delta, magnitude_threshold(delta, density, exact=True))
    assert torch.equal(in_band(delta, n_wanted, 0), trimmed)


@fast
@given(
    cases(max_experts=1, dtypes=st.just(torch.float32)),
    st.floats(0.0, 1.0),
    st.floats(0.0, 1.0),
    st.floats(0.0, 0.5),
)
def test_bands_nest_in_the_density(inputs, d1, d2, gamma):
    inputs = inputs_of(torch.zeros_like(inputs.base), inputs.deltas)
    small, large = (
        Breadcrumbs(weights=(1.0,), density=d, gamma=gamma, vectors="include").merge(inputs) != 0
        for d in sorted((d1, d2))
    )
    assert (small <= large).all()


def test_a_gamma_of_no_whole_element_drops_none():
    """Versions of mergekit that slice `[n_bot:-0]` keep nothing here."""
    base, experts = random_tensors((6, 6), 1)
    for compat in ("paper", "mergekit"):
        operator = Breadcrumbs(weights=(1.0,), density=0.5, gamma=0.01, compat=compat)
        kept = operator.merge(inputs_of(base, experts)) != base
        assert int(kept.sum()) == 18
        assert kept.reshape(-1)[(experts[0] - base).abs().argmax()]


def test_only_paper_mode_keeps_an_element_of_a_tiny_tensor():
    base, experts = random_tensors((1, 1), 1)
    inputs = inputs_of(base, experts)
    paper = Breadcrumbs(weights=(1.0,), density=0.5).merge(inputs)
    mergekit = Breadcrumbs(weights=(1.0,), density=0.5, compat="mergekit").merge(inputs)
    assert not torch.equal(paper, base)
    assert torch.equal(mergekit, base)


@pytest.mark.parametrize("cls", [Breadcrumbs, BreadcrumbsTies])
def test_full_density_keeps_everything_and_vectors_are_exempt(cls):
    weights = (0.3, 0.4)
    base, experts = random_tensors((30,), 2)
    inputs = inputs_of(base, experts)
    expected = TaskArithmetic(weights=weights).merge(inputs)
    assert torch.equal(cls(weights=weights, density=0.3).merge(inputs), expected)
    base, (expert,) = random_tensors((5, 4), 1, scale=9.0)
    assert torch.equal(cls(weights=(1.0,), density=1.0).merge(inputs_of(base, [expert])), expert)
