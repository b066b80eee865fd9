import dataclasses

import numpy as np
import pytest
import torch

from evomerge.merging.dare import DareLinear, DareTies
from evomerge.merging.philox import philox_uniform
from evomerge.merging.task_arithmetic import TaskArithmetic
from evomerge.seeding import derive
from tests.merging.tensors import inputs_of, random_tensors, relative_error


def masks(inputs, density, seed):
    """The masks, from the definition of the stream."""
    found = []
    for key, expert in zip(inputs.source_keys, inputs.experts, strict=True):
        stream = philox_uniform(derive(seed, "mask", key, inputs.name), expert.numel())
        found.append(stream.reshape(expert.shape).numpy() < density)
    return found


def drawn(density):
    """The density as it is drawn: random numbers have 16 bits."""
    return round(density * 2**16) / 2**16


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_dare_linear_matches_its_formula(density):
    base, experts = random_tensors((30, 7), 3)
    inputs = inputs_of(base, experts)
    weights = (0.5, -0.2, 0.8)
    merged = DareLinear(weights=weights, density=density, lambda_=0.7, seed=5).merge(inputs)
    tau = sum(
        w * (e.double() - base.double()).numpy() * mask / drawn(density)
        for w, e, mask in zip(weights, experts, masks(inputs, density, 5), strict=True)
    )
    assert relative_error(merged, base.double().numpy() + 0.7 * tau) < 1e-6


def test_normalize_divides_by_the_weights_sum():
    base, experts = random_tensors((5, 7), 2)
    inputs = inputs_of(base, experts)
    a = DareLinear(weights=(1.0, 3.0), normalize=True).merge(inputs)
    assert torch.equal(a, DareLinear(weights=(0.25, 0.75)).merge(inputs))


@pytest.mark.parametrize("compat", ["paper", "mergekit"])
def test_dare_ties_votes_after_dropping(compat):
    base, experts = random_tensors((12, 9), 3)
    inputs = inputs_of(base, experts)
    weights = (0.5, 0.1, 0.9)
    operator = DareTies(weights=weights, density=0.6, seed=2, compat=compat, rescale="inverse")
    deltas = np.stack(
        [
            (e.double() - base.double()).numpy() * mask / drawn(0.6)
            for e, mask in zip(experts, masks(inputs, 0.6, 2), strict=True)
        ]
    )
    w = np.array(weights)[:, None, None]
    votes = deltas * w if compat == "mergekit" else deltas
    elected = np.where(votes.sum(0) >= 0, 1, -1)
    tau = (w * deltas * (np.sign(deltas) == elected)).sum(0)
    assert relative_error(operator.merge(inputs), base.double().numpy() + tau) < 1e-6


@pytest.mark.parametrize("cls", [DareLinear, DareTies])
def test_lone_experts_and_zero_weights_are_bit_exact_at_full_density(cls):
    base, experts = random_tensors((6, 5), 2, scale=9.0)
    both, one = inputs_of(base, experts), inputs_of(base, experts[:1])
    assert torch.equal(cls(weights=(1.0,), density=1.0).merge(one), experts[0])
    assert torch.equal(cls(weights=(0.0, 0.0)).merge(both), base)
    assert torch.equal(cls(weights=(1.0, 1.0), lambda_=0.0).merge(both), base)
    if cls is DareLinear:
        assert torch.equal(cls(weights=(0.0, 1.0), density=1.0).merge(both), experts[1])


def test_full_density_is_task_arithmetic():
    base, experts = random_tensors((6, 5), 3)
    inputs = inputs_of(base, experts)
    weights = (0.3, 0.4, 0.2)
    expected = TaskArithmetic(weights=weights).merge(inputs)
    assert torch.equal(DareLinear(weights=weights, density=1.0).merge(inputs), expected)


def test_vectors_are_exempt_unless_asked_for():
    base, experts = random_tensors((400,), 2)
    inputs = inputs_of(base, experts)
    weights = (0.3, 0.4)
    expected = TaskArithmetic(weights=weights).merge(inputs)
    for cls in (DareLinear, DareTies):
        assert torch.equal(cls(weights=weights, density=0.3).merge(inputs), expected)
        dropped = cls(weights=weights, density=0.3, vectors="include").merge(inputs)
        assert float((dropped == base).float().mean()) > 0.3
        assert cls(weights=weights).fallback("w", (400,))
        assert cls(weights=weights, compat="mergekit").fallback("w", (400,)) is None


def test_masks_follow_the_expert_not_its_position():
    base, experts = random_tensors((20, 20), 2)
    a = inputs_of(base, experts, keys=("first", "second"))
    b = inputs_of(base, experts[::-1], keys=("second", "first"))
    for cls in (DareLinear, DareTies):
        one = cls(weights=(0.2, 0.9), seed=3).merge(a)
        other = cls(weights=(0.9, 0.2), seed=3).merge(b)
        assert relative_error(one, other) < 1e-6


def test_masks_of_different_tensors_differ():
    base, experts = random_tensors((20, 20), 1)
    a = inputs_of(base, experts)
    b = dataclasses.replace(a, name="other")
    one, two = (DareLinear(weights=(1.0,)).merge(x) != base for x in (a, b))
    assert not torch.equal(one, two)


def test_expectation_over_seeds_is_the_task_vector():
    base = torch.zeros(4, 50)
    expert = torch.linspace(-1.0, 1.0, 200).reshape(4, 50)
    inputs = inputs_of(base, [expert])
    density, n_seeds = 0.4, 600
    draws = torch.stack(
        [DareLinear(weights=(1.0,), density=density, seed=s).merge(inputs) for s in range(n_seeds)]
    ).double()
    variance = expert.double().square() * (1 - density) / density
    spread = (variance / n_seeds).sqrt()
    assert ((draws.mean(0) - expert.double()).abs() <= 5 * spread + 1e-12).all()
    assert torch.allclose(draws.var(0), variance, rtol=0.35, atol=1e-6)


def test_kept_fractions_are_the_density_and_masks_nest():
    base, experts = random_tensors((200, 100), 1)
    inputs = inputs_of(base, experts)
    changed = {
        d: DareLinear(weights=(1.0,), density=d, rescale="none").merge(inputs) != base
        for d in (0.2, 0.5)
    }
    for density, where in changed.items():
        assert float(where.float().mean()) == pytest.approx(density, abs=0.015)
    assert (changed[0.2] <= changed[0.5]).all()


def test_l1_rescaling_restores_the_sum_of_magnitudes():
    base, experts = random_tensors((60, 60), 1)
    merged = DareLinear(weights=(1.0,), compat="mergekit").merge(inputs_of(base, experts))
    expected = float((experts[0] - base).abs().sum())
    assert float((merged - base).abs().sum()) == pytest.approx(expected, rel=1e-5)


def test_density_zero_gives_the_base():
    base, experts = random_tensors((6, 6), 2)
    assert torch.equal(
        DareLinear(weights=(1.0, 1.0), density=0.0).merge(inputs_of(base, experts)), base
    )


@pytest.mark.parametrize("density", [0.71, 0.3, 0.9])
@pytest.mark.parametrize("n", [60, 20_000])  # torch alone, a compiled kernel
def test_opposite_task_vectors_tie_whatever_they_are_multiplied_by(density, n):
    delta = torch.rand(n // 10, 10, generator=torch.Generator().manual_seed(0)) + 0.1
    inputs = inputs_of(torch.zeros_like(delta), [-delta, delta])
    given = DareTies(weights=(1.0, 1.0), density=density, seed=3)
    first, second = masks(inputs, density, 3)
    tied = given.merge(inputs)[torch.from_numpy(first & second)]
    assert len(tied)
    assert (tied > 0.0).all(), "a tie goes to the positive sign"
