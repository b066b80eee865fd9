import pytest
import torch

from evomerge.merging.quantiles import magnitude_threshold, n_kept
from evomerge.merging.sign_consensus import (
    combine,
    elect_signs,
    trim,
)


def test_densities_round_down_but_keep_one_element():
    assert [n_kept(d, 10) for d in (0.0, 0.05, 0.19, 0.2, 0.99, 1.0)] == [1, 1, 1, 2, 9, 10]
    assert n_kept(0.2, 1) == 1


def test_trimming_keeps_the_largest_and_their_ties():
    delta = torch.tensor([3.0, -2.0, 2.0, 1.0, 0.5])
    assert magnitude_threshold(delta, 0.4) == 2.0
    assert trim(delta, 2.0).tolist() == [3.0, -2.0, 2.0, 0.0, 0.0]
    assert magnitude_threshold(torch.tensor(-4.0), 0.1) == 4.0


def test_the_weighted_vote_uses_weights_and_the_plain_one_does_not():
    deltas = torch.tensor([[1.0, 2.0, 0.0], [-3.0, -2.0, 0.0]])
    assert elect_signs(deltas, (1.0, 1.0), "unweighted").tolist() == [-1.0, 1.0, 1.0]
    assert elect_signs(deltas, (4.0, 1.0), "weighted").tolist() == [1.0, 1.0, 1.0]


def test_a_vote_does_not_depend_on_the_order_of_the_experts():
    deltas = torch.tensor([[1.0], [1e-9], [-1.0]])
    for order in ([0, 1, 2], [0, 2, 1], [2, 1, 0]):
        assert elect_signs(deltas[order], (1.0,) * 3, "unweighted").tolist() == [1.0]


DELTAS = [
    torch.tensor([1.0, -2.0, 0.0]),
    torch.tensor([3.0, 1.0, 0.0]),
    torch.tensor([-1.0, -4.0, 0.0]),
]


@pytest.mark.parametrize(
    ("divisor", "expected"),
    [
        ("none", [0.5 * 1 + 0.2 * 3, 0.5 * -2 + 0.1 * -4, 0.0]),
        ("mean", [(0.5 * 1 + 0.2 * 3) / 2, (0.5 * -2 + 0.1 * -4) / 2, 0.0]),
        ("weights", [(0.5 * 1 + 0.2 * 3) / 0.7, (0.5 * -2 + 0.1 * -4) / 0.6, 0.0]),
        ("signed_weights", [(0.5 * 1 + 0.2 * 3) / 0.7, (0.5 * -2 + 0.1 * -4) / 0.6, 0.0]),
    ],
)
def test_only_experts_of_the_elected_sign_are_combined(divisor, expected):
    got = combine(DELTAS, (0.5, 0.2, 0.1), vote="unweighted", divisor=divisor)
    assert torch.allclose(got, torch.tensor(expected))


def test_negative_weights_explode_only_with_the_signed_divisor():
    deltas = [torch.tensor([5.0]), torch.tensor([-5.0])]
    weights = (1.0, -0.95)
    safe = combine(deltas, weights, vote="weighted", divisor="weights")
    signed = combine(deltas, weights, vote="weighted", divisor="signed_weights")
    assert float(safe.abs().max()) <= 5.0 + 1e-6
    assert float(signed.abs().max()) > 100.0


def test_without_a_vote_every_expert_counts():
    got = combine(DELTAS, (1.0, 1.0, 1.0), vote=None, divisor="mean")
    assert torch.allclose(got, torch.stack(DELTAS).mean(0))


def test_large_tensors_are_combined_in_pieces_with_equal_bits():
    deltas = [torch.randn(200_001, generator=torch.Generator().manual_seed(k)) for k in range(3)]
    whole = combine(deltas, (1.0, 0.5, 0.2), vote="weighted", divisor="weights")
    part = combine(
        [d[65_000:66_000] for d in deltas], (1.0, 0.5, 0.2), vote="weighted", divisor="weights"
    )
    assert torch.equal(whole[65_000:66_000], part)
