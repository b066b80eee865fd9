import dataclasses

import numpy as np
import pytest
import torch

from evomerge.config.merge_space import build_space
from evomerge.errors import ConfigError
from evomerge.merging.evo_merging import EvoMerging
from tests.merging.low_rank_cases import dense, random_factors
from tests.merging.memory_source import make_sources, space_of
from tests.merging.tensors import inputs_of, random_tensors, relative_error

ALPHA, BETA = (0.4, 1.0, 0.75), (0.7, -1.2, 0.3)


def top(values, share):
    """Return the largest share of the elements, in float64; the oracle of top-alpha."""
    count = max(int(share * values.size), 1)
    edge = np.sort(np.abs(values).ravel())[::-1][count - 1]
    return np.where(np.abs(values) >= edge, values, 0.0)


def adapters(parts, base):
    """Return inputs in which every expert is an adapter; None leaves the base as it is."""
    deltas = tuple(None if part is None else part.product() for part in parts)
    experts = [base if delta is None else base + delta for delta in deltas]
    inputs = inputs_of(base, experts, out_dtype=torch.float32)
    return dataclasses.replace(inputs, exact_deltas=deltas, factors=tuple(parts))


def oracle(parts, coupling):
    a = [top(part.a.double().numpy(), share) for part, share in zip(parts, ALPHA, strict=True)]
    b = [part.b.double().numpy() for part in parts]
    if coupling == "b_only":
        return sum(c * y @ x for c, x, y in zip(BETA, a, b, strict=True))
    on_a = np.array(BETA) if coupling == "both" else np.sqrt(np.abs(BETA))
    on_b = np.array(BETA) if coupling == "both" else np.sign(BETA) * np.sqrt(np.abs(BETA))
    return np.tensordot(on_b, b, 1) @ np.tensordot(on_a, a, 1)


@pytest.mark.parametrize("shape", [(1, 1), (9, 14), (3, 4, 5)])
def test_dense_task_vectors_are_pruned_and_scaled(shape):
    base, experts = random_tensors(shape, 3)
    merged = EvoMerging(alpha=ALPHA, beta=BETA).merge(inputs_of(base, experts))
    expected = base.double().numpy() + sum(
        c * top((e - base).double().numpy(), share)
        for c, share, e in zip(BETA, ALPHA, experts, strict=True)
    )
    assert relative_error(merged, expected) < 1e-6


@pytest.mark.parametrize("is_transposed", [False, True])
@pytest.mark.parametrize("coupling", ["b_only", "both", "sqrt"])
def test_the_couplings_are_their_formulas(coupling, is_transposed):
    parts = random_factors(6, 9, [3, 3, 3], is_transposed=is_transposed)
    delta = oracle(parts, coupling)
    delta = delta.T if is_transposed else delta
    operator = EvoMerging(alpha=ALPHA, beta=BETA, coupling=coupling)
    merged = operator.merge(adapters(parts, torch.zeros(6, 9)))
    assert relative_error(merged, delta) < 1e-6
    factors = operator.merged_factors(tuple(parts), "w")
    assert relative_error(factors.product(), delta) < 1e-6
    assert factors.rank == (9 if coupling == "b_only" else 3)


def test_nothing_pruned_is_task_arithmetic_and_one_hot_the_expert():
    parts = random_factors(6, 9, [3, 1, 2])
    base = torch.randn(6, 9, generator=torch.Generator().manual_seed(1))
    inputs = adapters(parts, base)
    merged = EvoMerging(alpha=(1.0,) * 3, beta=BETA).merge(inputs)
    expected = base.double() + sum(c * dense(part) for c, part in zip(BETA, parts, strict=True))
    assert relative_error(merged, expected) < 1e-6
    one = EvoMerging(alpha=(1.0,) * 3, beta=(0.0, 1.0, 0.0)).merge(inputs)
    assert torch.equal(one, inputs.experts[1])
    none = EvoMerging(alpha=ALPHA, beta=(0.0,) * 3).merge(inputs)
    assert torch.equal(none, base)


@pytest.mark.parametrize("coupling", ["both", "b_only", "sqrt"])
def test_turning_every_sign_negates_only_where_the_scale_is_on_one_factor(coupling):
    parts = random_factors(5, 4, [2, 2, 2])
    inputs = adapters(parts, torch.zeros(5, 4))
    one = EvoMerging(alpha=ALPHA, beta=BETA, coupling=coupling).merge(inputs)
    minus = EvoMerging(alpha=ALPHA, beta=tuple(-c for c in BETA), coupling=coupling).merge(inputs)
    torch.testing.assert_close(minus, one if coupling == "both" else -one)


def test_an_adapter_that_leaves_a_tensor_alone_adds_nothing():
    first, third = random_factors(5, 4, [2, 2])
    base = torch.zeros(5, 4)
    some = EvoMerging(alpha=ALPHA, beta=BETA, coupling="both").merge(
        adapters([first, None, third], base)
    )
    two = EvoMerging(alpha=ALPHA[::2], beta=BETA[::2], coupling="both").merge(
        adapters([first, third], base)
    )
    assert torch.equal(some, two)


def test_an_adapter_and_a_full_model_are_added():
    (part,) = random_factors(5, 4, [2])
    base, (expert,) = random_tensors((5, 4), 1)
    inputs = adapters([part, None], base)
    inputs = dataclasses.replace(inputs, experts=(inputs.experts[0], expert))
    merged = EvoMerging(alpha=(0.5, 0.5), beta=(0.6, -0.8)).merge(inputs)
    a = top(part.a.double().numpy(), 0.5)
    pruned = top((expert - base).double().numpy(), 0.5)
    expected = base.double().numpy() + 0.6 * part.b.double().numpy() @ a - 0.8 * pruned
    assert relative_error(merged, expected) < 1e-6


def test_factors_of_different_ranks_cannot_be_added():
    inputs = adapters(random_factors(5, 4, [2, 3]), torch.zeros(5, 4))
    with pytest.raises(ConfigError, match=r"w: coupling 'both'.*\[2, 3\].*b_only"):
        EvoMerging(alpha=(0.5, 0.5), beta=(1.0, 1.0), coupling="both").merge(inputs)


def test_a_search_starts_unpruned_at_the_mean():
    space, _ = build_space(
        {"name": "evo_merging"}, space_of(make_sources(4)), founders="none", span=None
    )
    assert [(item.name, item.initial) for item in space.searched] == [
        ("alpha", 1.0),
        ("beta", 0.25),
    ]


@pytest.mark.parametrize("bad", [{"alpha": (1.2,)}, {"coupling": "none"}])
def test_illegal_parameters_are_refused(bad):
    with pytest.raises(ConfigError):
        EvoMerging(**{"alpha": (1.0,), "beta": (1.0,)} | bad)
