import numpy as np
import pytest
import torch

from evomerge.errors import ConfigError
from evomerge.merging.ties import Ties
from tests.merging.tensors import inputs_of, random_tensors, relative_error


def exact_threshold(deltas):
    """Thresholds as if this tensor were the whole model."""

    def threshold(expert, density, exact):
        values = np.sort(np.abs(deltas[expert].numpy()).reshape(-1))[::-1]
        return float(values[max(int(density * len(values)), 1) - 1])

    return threshold


def oracle(base, experts, *, weights, density, lambda_, weighted, divisor):
    """TIES on one tensor in float64, written from the paper's three steps."""
    deltas = np.stack([(e.float() - base.float()).double().numpy() for e in experts])
    trimmed = np.zeros_like(deltas)
    for k, delta in enumerate(deltas):
        flat = delta.reshape(-1)
        n_keep = max(int(density * flat.size), 1)
        for place in np.argsort(-np.abs(flat), kind="stable")[:n_keep]:
            trimmed[k].reshape(-1)[place] = flat[place]
    w = np.array(weights).reshape(-1, *[1] * (deltas.ndim - 1))
    elected = np.where((trimmed * w if weighted else trimmed).sum(0) >= 0, 1, -1)
    agrees = np.sign(trimmed * w if weighted else trimmed) == elected
    total = (w * trimmed * agrees).sum(0)
    below = {
        "mean": agrees.sum(0).astype(float),
        "weights": (np.abs(w) * agrees).sum(0),
        "signed_weights": (w * agrees).sum(0),
        "none": np.ones(deltas.shape[1:]),
    }[divisor]
    tau = lambda_ * total / np.where(below == 0, 1, below)
    return base.double().numpy() + tau


@pytest.mark.parametrize("density", [0.05, 0.2, 0.73, 1.0])
@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.5, 0.3, 0.4)])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (13, 11), (2, 3, 5)])
def test_paper_mode_matches_the_three_steps(density, weights, shape):
    base, experts = random_tensors(shape, 3)
    deltas = [e - base for e in experts]
    inputs = inputs_of(base, experts, threshold=exact_threshold(deltas))
    merged = Ties(weights=weights, density=density, lambda_=0.8).merge(inputs)
    expected = oracle(
        base, experts, weights=weights, density=density, lambda_=0.8, weighted=False, divisor="mean"
    )
    assert relative_error(merged, expected) < 1e-6


@pytest.mark.parametrize("sign", ["weighted", "unweighted"])
@pytest.mark.parametrize("divisor", ["mean", "weights", "signed_weights", "none"])
def test_every_combination_of_settings_matches_the_oracle(sign, divisor):
    base, experts = random_tensors((9, 10), 4)
    weights = (0.5, -0.3, 0.4, 0.2)
    operator = Ties(
        weights=weights, density=0.4, lambda_=1.2, threshold="tensor", sign=sign, divisor=divisor
    )
    expected = oracle(
        base,
        experts,
        weights=weights,
        density=0.4,
        lambda_=1.2,
        weighted=sign == "weighted",
        divisor=divisor,
    )
    assert relative_error(operator.merge(inputs_of(base, experts)), expected) < 1e-5


def test_compat_resolves_every_setting_left_at_auto():
    paper, mergekit = Ties(weights=(1.0,)), Ties(weights=(1.0,), compat="mergekit")
    assert (paper.resolved_threshold, paper.resolved_sign, paper.resolved_divisor) == (
        "global",
        "unweighted",
        "mean",
    )
    assert (mergekit.resolved_threshold, mergekit.resolved_sign, mergekit.resolved_divisor) == (
        "tensor",
        "weighted",
        "signed_weights",
    )
    assert paper.fallback("w", (3,))
    assert paper.fallback("w", ())
    assert paper.fallback("w", (3, 1)) is None
    assert mergekit.fallback("w", (3,)) is None
    assert Ties(weights=(1.0,), compat="mergekit", vectors="exempt").fallback("w", (3,))
    assert Ties(weights=(1.0,), divisor="none").resolved_divisor == "none"


def test_vectors_are_averaged_in_paper_mode():
    base, experts = random_tensors((7,), 3)
    merged = Ties(weights=(1.0, 1.0, 1.0), lambda_=0.5).merge(inputs_of(base, experts))
    mean = torch.stack([e.double() - base.double() for e in experts]).mean(0)
    assert relative_error(merged, base.double() + 0.5 * mean) < 1e-6


@pytest.mark.parametrize("divisor", ["mean", "weights", "signed_weights", "none"])
@pytest.mark.parametrize("shape", [(5,), (5, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_lone_untrimmed_expert_is_bit_exact(divisor, shape, dtype):
    base, (expert,) = random_tensors(shape, 1, dtype=dtype, scale=9.0)
    inputs = inputs_of(base, [expert])
    operator = Ties(weights=(1.0,), density=1.0, divisor=divisor)
    assert torch.equal(operator.merge(inputs), expert)


def test_zero_scale_and_zero_weights_give_the_base():
    base, experts = random_tensors((5, 4), 2, scale=9.0)
    inputs = inputs_of(base, experts)
    assert torch.equal(Ties(weights=(1.0, 1.0), lambda_=0.0).merge(inputs), base)
    for divisor in ("mean", "weights", "signed_weights", "none"):
        assert torch.equal(Ties(weights=(0.0, 0.0), divisor=divisor).merge(inputs), base)


def test_only_ratios_of_weights_count_with_a_weight_divisor():
    base, experts = random_tensors((8, 8), 3)
    inputs = inputs_of(base, experts)
    for divisor in ("weights", "signed_weights"):
        a = Ties(weights=(0.2, 0.1, 0.4), threshold="tensor", divisor=divisor).merge(inputs)
        b = Ties(weights=(0.8, 0.4, 1.6), threshold="tensor", divisor=divisor).merge(inputs)
        assert relative_error(a, b) < 1e-6


def test_disjoint_supports_add_up():
    base = torch.zeros(4, 4)
    supports = [torch.zeros(4, 4) for _ in range(3)]
    for k, support in enumerate(supports):
        support[k] = torch.tensor([1.0, -2.0, 3.0, -4.0]) * (k + 1)
    merged = Ties(weights=(1.0,) * 3, density=1.0).merge(inputs_of(base, supports))
    assert torch.equal(merged, supports[0] + supports[1] + supports[2])


def test_density_zero_still_keeps_the_largest_element():
    base, experts = random_tensors((4, 4), 1)
    merged = Ties(weights=(1.0,), density=0.0, threshold="tensor").merge(inputs_of(base, experts))
    assert int((merged != base).sum()) == 1


def test_rescale_l1_restores_the_sum_of_magnitudes():
    base, experts = random_tensors((6, 6), 1)
    operator = Ties(weights=(1.0,), density=0.3, threshold="tensor", rescale="l1")
    merged = operator.merge(inputs_of(base, experts))
    before = float((experts[0] - base).abs().sum())
    assert float((merged - base).abs().sum()) == pytest.approx(before, rel=1e-4)


def test_misspelt_settings_are_refused():
    with pytest.raises(ConfigError, match=r"threshold is 'globl'.*Did you mean 'global'"):
        Ties(weights=(1.0,), threshold="globl")
    with pytest.raises(ConfigError, match=r"density is 1\.5, must be at most 1"):
        Ties(weights=(1.0,), density=1.5)
