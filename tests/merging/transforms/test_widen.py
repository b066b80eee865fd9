import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import ConfigError
from evomerge.merging.transform import DeltaInputs
from evomerge.merging.transform_conformance import check_delta_transform
from evomerge.merging.transforms.widen import Widen, column_changes
from tests.merging.transforms.spectral_cases import EXPERTS, NAME, SEEDS, error

fast = settings(deadline=None, max_examples=40)


def model(shape, n, seed, scale=0.02):
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator)
    deltas = [scale * torch.randn(shape, generator=generator) for _ in range(n)]
    return DeltaInputs(NAME, base, tuple(deltas))


def scores(changes, ratio):
    """Return (E, n) scores from (E, n) changes, element by element."""
    n = changes.shape[1]
    ranks = np.array([[np.sum(row < value) for value in row] for row in changes])
    soft = np.exp(ranks / n) / np.exp(ranks / n).sum(0)
    return np.where(ranks > ranks.mean(1, keepdims=True) * ratio, 1.0, soft)


def oracle(inputs, ratio):
    base = inputs.base.double().numpy()
    lengths, turns = [], []
    for delta in inputs.deltas:
        expert = base + delta.double().numpy()
        old, new = np.linalg.norm(base, axis=0), np.linalg.norm(expert, axis=0)
        lengths.append(np.abs(new - old))
        turns.append(1.0 - (base * expert).sum(0) / (old * new))
    weights = 0.5 * (scores(np.array(lengths), ratio) + scores(np.array(turns), ratio))
    return [w * d.double().numpy() for w, d in zip(weights, inputs.deltas, strict=True)]


@fast
@given(
    st.tuples(st.integers(2, 9), st.integers(1, 12)),
    EXPERTS,
    SEEDS,
    st.sampled_from([0.5, 1.0, 1.7, 2.0]),
)
def test_it_matches_its_formula(shape, n, seed, ratio):
    inputs = model(shape, n, seed)
    for part, expected in zip(
        Widen(ratio=ratio).transform(inputs, None), oracle(inputs, ratio), strict=True
    ):
        assert error(part, expected) < 1e-6


def test_tiny_turns_are_told_apart():
    base = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    delta = torch.tensor([[0.0, 0.0], [1e-5, 3e-5]])
    _, turn = column_changes(base, delta)
    assert error(turn, [0.5e-10, 4.5e-10]) < 1e-6


def test_a_column_that_is_zero_in_the_base():
    inputs = model((4, 3), 2, 0)
    inputs.base[:, 1] = 0.0
    length, turn = column_changes(inputs.base, inputs.deltas[0])
    assert torch.isfinite(turn).all()
    assert float(turn[1]) == 1.0
    assert error(length[1], inputs.deltas[0][:, 1].double().norm()) < 1e-6
    _, turn = column_changes(inputs.base, torch.zeros(4, 3))
    assert not turn.any()


def test_the_larger_change_counts_in_full_and_one_expert_alone_does_too():
    inputs = model((16, 40), 1, 3)
    assert torch.equal(Widen().transform(inputs, None)[0], inputs.deltas[0])
    inputs = model((16, 40), 2, 3)
    changes = [column_changes(inputs.base, delta) for delta in inputs.deltas]
    for (length, turn), delta, part in zip(
        changes, inputs.deltas, Widen().transform(inputs, None), strict=True
    ):
        both = (length > length.median()) & (turn > turn.median())
        assert both.any()
        assert torch.equal(part[:, both], delta[:, both])
        assert (part.abs() <= delta.abs()).all()


@pytest.mark.parametrize("parameters", [{}, {"ratio": 2.0}])
def test_it_conforms(parameters):
    check_delta_transform("widen", parameters=parameters, scale_equivariant=False)


def test_bad_settings_are_refused():
    for bad in (-1.0, float("nan"), "1"):
        with pytest.raises(ConfigError, match="ratio"):
            Widen(ratio=bad)
