import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import ConfigError
from evomerge.merging.transform import DeltaInputs
from evomerge.merging.transform_conformance import check_delta_transform
from evomerge.merging.transforms.pcb import Pcb
from evomerge.merging.transforms.thinned import CAPACITY
from tests.merging.transforms.spectral_cases import EXPERTS, SEEDS, SHAPES, error

fast = settings(deadline=None, max_examples=40)
LAYER = "model.layers.{}.mlp.up_proj.weight"


def model(shapes, n, seed=0, scale=0.02):
    """Return the inputs of matrices with heavy tails, as task vectors have."""
    generator = torch.Generator().manual_seed(seed)
    return [
        DeltaInputs(
            LAYER.format(layer),
            torch.zeros(shape),
            tuple(
                scale * (1 + k / 3) * torch.randn(shape, generator=generator) ** 3 for k in range(n)
            ),
        )
        for layer, shape in enumerate(shapes)
    ]


def merge(transform, tensors):
    survey = transform.survey(iter(tensors)) if tensors else None
    return [transform.transform(part, survey) for part in tensors]


def flat(results):
    """Return (E, N) float64 parts of the whole model."""
    return np.stack(
        [
            np.concatenate([part.double().numpy().ravel() for part in e])
            for e in zip(*results, strict=True)
        ]
    )


def oracle(deltas, ratio, clip):
    """Return (E, N) parts for (E, N) task vectors, the published formula in float64, and where
    rounding decides: a share next to nothing takes all where no other expert has one.
    """
    n_experts, n = deltas.shape
    sizes = np.sort(np.abs(deltas), axis=1)
    low = sizes[:, [int(n * clip)]]
    high = np.maximum(low, sizes[:, [max(int(n * (1.0 - clip) - 1), 0)]])
    clipped = np.clip(np.abs(deltas), low, high)
    span = np.where(high > low, high - low, 1.0)
    norm = np.where(high > low, (clipped - low) / span, 1.0)
    balance = np.exp(n_experts * norm**2) * np.tanh(deltas * deltas.sum(0))
    ranked = np.sort(balance, axis=1)
    threshold = np.maximum(ranked[:, [min(int(n * (1.0 - ratio)), n - 1)]], 0.0)
    top = ranked[:, [-1]]
    span = np.where(top > threshold, top - threshold, 1.0)
    share = np.where(top > threshold, np.clip((balance - threshold) / span, 0.0, 1.0), 1.0)
    share *= (balance >= threshold) & (balance > 0.0)
    near = (np.abs(balance - threshold) < 1e-4 * top) & (top - threshold > 1e-3 * top)
    is_open = (near.any(0)) & (share.max(0) < 1e-2)
    return np.sign(deltas) * clipped * share / np.maximum(share.sum(0), 1e-12), is_open


@fast
@given(
    st.lists(SHAPES, min_size=1, max_size=3),
    EXPERTS,
    SEEDS,
    st.sampled_from([0.05, 0.1, 0.3, 1.0]),
    st.sampled_from([0.0, 1e-4, 0.1]),
)
def test_it_matches_its_formula(shapes, n, seed, ratio, clip):
    tensors = model(shapes, n, seed)
    deltas = np.stack(
        [np.concatenate([p.deltas[k].double().numpy().ravel() for p in tensors]) for k in range(n)]
    )
    got = flat(merge(Pcb(ratio=ratio, clip=clip), tensors))
    expected, is_open = oracle(deltas, ratio, clip)
    got, expected = got[:, ~is_open], expected[:, ~is_open]
    assert np.abs(got - expected).max(initial=0.0) <= 1e-3 * np.abs(deltas).max()


def test_the_ratio_counts_over_the_whole_model():
    tensors = model([(40, 50), (50, 40)], 2)
    # The second tensor changed ten times as much, so most of what is kept is there.
    large = tuple(10.0 * delta for delta in tensors[1].deltas)
    tensors[1] = DeltaInputs(tensors[1].name, tensors[1].base, large)
    results = merge(Pcb(), tensors)
    kept = [sum(int((r[k] != 0).sum()) for r in results) for k in range(2)]
    # The element on the threshold itself has no share.
    assert kept == [399, 399]
    assert (results[0][0] != 0).sum() < 40


def test_a_model_larger_than_the_sample_keeps_the_ratio_and_sees_the_largest_balance():
    n = 2 * CAPACITY + 5
    tensors = model([(1, n), (3, 100_000)], 2)
    transform = Pcb()
    survey = transform.survey(iter(tensors))
    kept, largest = np.zeros(2), np.zeros(2)
    for part in tensors:
        outputs = transform.transform(part, survey)
        kept += [int((delta != 0).sum()) for delta in outputs]
    assert np.abs(kept / (n + 300_000) - transform.ratio).max() < 0.001
    whole = torch.stack([torch.cat([p.deltas[k].view(-1) for p in tensors]) for k in range(2)])
    deltas = whole.double()
    low, high = (torch.as_tensor(survey[:, [k]]) for k in (0, 1))
    norm = (deltas.abs().clamp(low, high) - low) / (high - low)
    balance = torch.exp(2 * (norm**2 - 1)) * (deltas * deltas.sum(0)).tanh()
    largest = balance.amax(1)
    assert error(survey[:, 3], largest) < 0.05
    # The peak of the sample alone would miss it by more than that.
    assert (survey[:, 3] <= largest.numpy() * 1.0001).all()


def test_one_expert_is_trimmed_and_otherwise_comes_back():
    tensors = model([(30, 40)], 1)
    ((part,),) = merge(Pcb(clip=0.0), tensors)
    delta = tensors[0].deltas[0]
    assert int((part != 0).sum()) == 119
    assert error(part[part != 0], delta[part != 0]) < 1e-6
    assert delta[part != 0].abs().min() > delta[part == 0].abs().max() * 0.999


def test_elements_that_oppose_the_sum_are_not_kept():
    tensors = model([(20, 20)], 3)
    ((first, second, third),) = merge(Pcb(ratio=1.0), tensors)
    total = sum(tensors[0].deltas)
    for part in (first, second, third):
        assert (part * total >= 0.0).all()
        assert (part != 0).any()


def test_it_grows_with_small_task_vectors():
    tensors = model([(20, 30)], 3, scale=1e-4)
    longer = [DeltaInputs(p.name, p.base, tuple(-0.5 * d for d in p.deltas)) for p in tensors]
    for part, other in zip(flat(merge(Pcb(), tensors)), flat(merge(Pcb(), longer)), strict=True):
        assert error(other, -0.5 * part) < 1e-3


def test_an_expert_without_a_change_has_no_part_and_takes_none():
    tensors = model([(20, 30)], 2)
    first, second = tensors[0].deltas
    with_zero = DeltaInputs(
        tensors[0].name, tensors[0].base, (first, torch.zeros_like(first), second)
    )
    ((a, zero, b),) = merge(Pcb(), [with_zero])
    assert not zero.any()
    assert torch.isfinite(a).all()
    assert a.any()
    assert b.any()


def test_a_hundred_experts_do_not_overflow():
    results = merge(Pcb(), model([(6, 7)], 100))
    assert all(torch.isfinite(part).all() for part in results[0])
    assert any(part.any() for part in results[0])


def test_a_model_of_vectors_only_gets_the_mean():
    vectors = [DeltaInputs("model.norm.weight", torch.ones(5), (torch.ones(5), torch.zeros(5)))]
    ((first, second),) = merge(Pcb(), vectors)
    assert torch.equal(first, torch.full((5,), 0.5))
    assert not second.any()


def test_a_missing_survey_is_refused():
    (tensors,) = model([(3, 4)], 2)
    with pytest.raises(ConfigError, match="survey"):
        Pcb().transform(tensors, None)


def test_one_outlier_does_not_change_what_is_kept():
    (tensors,) = model([(40, 50)], 8)
    for delta in tensors.deltas:
        delta[0, 0] = 30.0
    ((first, *_),) = merge(Pcb(), [tensors])
    assert int((first != 0).sum()) == 199


@pytest.mark.parametrize("parameters", [{}, {"ratio": 0.3, "clip": 0.0}])
def test_it_conforms(parameters):
    # tanh bends: its longest task vectors have elements above 1.
    check_delta_transform("pcb", parameters=parameters, scale_equivariant=False)


def test_bad_settings_are_refused():
    for bad in ({"ratio": 0.0}, {"ratio": 1.1}, {"clip": 0.5}, {"clip": "none"}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            Pcb(**bad)
