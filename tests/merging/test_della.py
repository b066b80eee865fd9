import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evomerge.merging.della import Della, DellaLinear
from evomerge.merging.philox import philox_uniform
from evomerge.merging.rank_codes import rank_codes
from evomerge.merging.task_arithmetic import TaskArithmetic
from evomerge.seeding import derive
from tests.merging.tensors import inputs_of, random_tensors
from tests.merging.test_golden import GOLDEN, merge_case
from tests.merging.test_properties import cases, error_of, fast

needs_golden = pytest.mark.skipif(not GOLDEN.exists(), reason="../shared/golden is not here")


def oracle_probabilities(delta, density, epsilon):
    rows = np.abs(delta.reshape(delta.shape[0] if delta.ndim > 1 else 1, -1))
    n = rows.shape[1]
    ranks = np.full(rows.shape, 0.5)
    if n > 1:
        for row, values in enumerate(rows):
            ranks[row, np.argsort(values, kind="stable")] = np.arange(n) / (n - 1)
    epsilon = min(epsilon, 0.9 * min(density, 1 - density))
    return (density - epsilon + 2 * epsilon * ranks).reshape(delta.shape)


def oracle(inputs, weights, *, density, epsilon, lambda_, seed, vote):
    """DELLA on one tensor in float64; also the gap of each element to the edge of its mask."""
    base = inputs.base.double().numpy()
    deltas, gap = [], np.inf
    for key, delta in zip(inputs.source_keys, inputs.deltas, strict=True):
        pi = oracle_probabilities(delta.double().numpy(), density, epsilon)
        stream = philox_uniform(derive(seed, "mask", key, inputs.name), delta.numel())
        u = stream.double().numpy().reshape(pi.shape)
        gap = np.minimum(gap, np.abs(u - pi))
        deltas.append(delta.double().numpy() * (u < pi) / np.where(pi > 0, pi, 1.0))
    deltas = np.stack(deltas)
    w = np.array(weights).reshape(-1, *[1] * base.ndim)
    if base.ndim <= 1:
        total = (w * inputs_deltas(inputs)).sum(0)
        return base + lambda_ * (total / len(weights) if vote else total), np.inf
    if not vote:
        return base + lambda_ * (w * deltas).sum(0), gap
    elected = np.where(deltas.sum(0) >= 0, 1, -1)
    agrees = np.sign(deltas) == elected
    total = (w * deltas * agrees).sum(0)
    return base + lambda_ * total / np.maximum(agrees.sum(0), 1), gap


def inputs_deltas(inputs):
    return np.stack([delta.double().numpy() for delta in inputs.deltas])


@fast
@given(
    cases(dtypes=st.just(torch.float32)),
    st.floats(0.0, 1.0),
    st.floats(0.0, 0.5),
    st.booleans(),
)
def test_both_methods_match_their_formula(inputs, density, epsilon, vote):
    weights = tuple(0.2 + 0.3 * k for k in range(len(inputs.experts)))
    cls = Della if vote else DellaLinear
    merged = cls(weights=weights, density=density, epsilon=epsilon, lambda_=0.8, seed=3).merge(
        inputs
    )
    expected, gap = oracle(
        inputs, weights, density=density, epsilon=epsilon, lambda_=0.8, seed=3, vote=vote
    )
    assert torch.isfinite(merged).all()
    is_sure = torch.as_tensor(np.broadcast_to(gap, merged.shape) > 1e-6)
    # 1 / pi reaches 10 / density, and errors with it.
    scale = 1.0 / max(0.1 * density, 1e-3)
    sure, wanted = merged[is_sure], torch.as_tensor(expected)[is_sure]
    if is_sure.any():
        assert error_of(sure, wanted, inputs) < 2e-6 * scale


def test_stacked_experts_with_long_rows_are_dropped_by_rank():
    """A row of 140,000 elements: their ranks fit no two bytes, and they are more than a pass."""
    base, experts = random_tensors((2, 350, 400), 2)
    settings = {"density": 0.5, "epsilon": 0.3, "lambda_": 0.8, "seed": 3}
    for vote, cls in ((True, Della), (False, DellaLinear)):
        operator = cls(weights=(0.4, 0.7), **settings)
        inputs = inputs_of(base, experts)
        expected, _ = oracle(inputs, (0.4, 0.7), vote=vote, **settings)
        # Steps of the ranks decide a few masks and votes otherwise, and change all a little.
        off = (operator.merge(inputs) - torch.as_tensor(expected)).abs() > 1e-4
        assert int(off.sum()) <= 10


def test_large_elements_are_kept_more_often_and_the_mean_fraction_is_the_density():
    base, experts = random_tensors((200, 100), 1)
    inputs = inputs_of(base, experts)
    operator = DellaLinear(weights=(1.0,), density=0.4, epsilon=0.2, rescale="none")
    kept = operator.merge(inputs) != base
    assert float(kept.float().mean()) == pytest.approx(0.4, abs=0.015)
    ranks = rank_codes(experts[0] - base).float() / 99
    for low, high, expected in ((0.0, 0.25, 0.25), (0.75, 1.0, 0.55)):
        part = kept[(ranks >= low) & (ranks <= high)]
        assert float(part.float().mean()) == pytest.approx(expected, abs=0.03)


@fast
@given(
    cases(max_experts=1, dtypes=st.just(torch.float32)),
    st.floats(0.0, 1.0),
    st.floats(0.0, 1.0),
    st.floats(0.0, 0.5),
)
def test_masks_nest_in_the_density(inputs, d1, d2, epsilon):
    inputs = inputs_of(torch.zeros_like(inputs.base), inputs.deltas)
    fixed = {"epsilon": epsilon, "vectors": "include", "rescale": "none"}
    small, large = (
        DellaLinear(weights=(1.0,), density=d, **fixed).merge(inputs) != 0 for d in sorted((d1, d2))
    )
    assert (small <= large).all()


def test_expectation_over_seeds_is_the_task_vector():
    base = torch.zeros(4, 50)
    expert = torch.linspace(-1.0, 1.0, 200).reshape(4, 50)
    inputs = inputs_of(base, [expert])
    n_seeds = 600
    operator = {"weights": (1.0,), "density": 0.5, "epsilon": 0.2}
    draws = torch.stack(
        [DellaLinear(**operator, seed=s).merge(inputs) for s in range(n_seeds)]
    ).double()
    pi = torch.as_tensor(oracle_probabilities(expert.numpy(), 0.5, 0.2))
    variance = expert.double().square() * (1 - pi) / pi
    assert ((draws.mean(0) - expert).abs() <= 5 * (variance / n_seeds).sqrt() + 1e-12).all()
    assert torch.allclose(draws.var(0), variance, rtol=0.35, atol=1e-6)


def test_full_density_is_task_arithmetic_and_vectors_are_exempt():
    weights = (0.3, 0.4)
    for shape, density in (((6, 5), 1.0), ((30,), 0.3)):
        base, experts = random_tensors(shape, 2)
        inputs = inputs_of(base, experts)
        expected = TaskArithmetic(weights=weights).merge(inputs)
        assert torch.equal(DellaLinear(weights=weights, density=density).merge(inputs), expected)


def test_epsilon_is_cut_where_mergekit_stops_with_an_error():
    base, experts = random_tensors((20, 30), 2)
    inputs = inputs_of(base, experts)
    for density in (0.02, 0.98):
        merged = Della(weights=(1.0, 1.0), density=density, epsilon=0.3).merge(inputs)
        assert torch.isfinite(merged).all()
        keep = Della(weights=(1.0, 1.0), density=density, epsilon=0.3).keep(inputs, 0)
        assert keep.density - keep.spread / 2 >= 0.1 * density - 1e-6
        assert keep.density + keep.spread / 2 <= 1.0


def test_mergekit_rescales_by_one_factor_and_the_paper_by_each_probability():
    base, experts = random_tensors((40, 40), 1)
    inputs = inputs_of(base, experts)
    delta = (experts[0] - base).double()
    one = (DellaLinear(weights=(1.0,), compat="mergekit").merge(inputs) - base).double()
    assert float(one.abs().sum()) == pytest.approx(float(delta.abs().sum()), rel=1e-5)
    factors = (one / delta)[one.abs() > 0.01]
    assert float(factors.std()) < 1e-4
    each = (DellaLinear(weights=(1.0,)).merge(inputs) - base).double()
    assert float((each / delta)[each.abs() > 0.01].std()) > 0.1


def test_compat_resolves_the_settings_left_at_auto():
    paper, mergekit = Della(weights=(1.0,)), Della(weights=(1.0,), compat="mergekit")
    assert (paper.resolved_rescale, paper.resolved_divisor, paper.resolved_sign) == (
        "inverse",
        "mean",
        "unweighted",
    )
    assert (mergekit.resolved_rescale, mergekit.resolved_divisor, mergekit.resolved_sign) == (
        "l1",
        "signed_weights",
        "weighted",
    )


@needs_golden
@pytest.mark.parametrize("name", ["della_seed7_nz", "della_linear_seed7_nz"])
def test_mergekits_random_cases_have_our_norm(name):
    merged, golden, sources, _ = merge_case(name, seed=7)
    norms = []
    for result in (merged, golden):
        changes = [result[k].double() - sources["base"].tensors[k].double() for k in golden]
        norms.append(sum(float(change.square().sum()) for change in changes))
    assert abs(norms[0] / norms[1] - 1.0) < 0.2
