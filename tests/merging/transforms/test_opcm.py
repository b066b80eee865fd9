"""OPCM: the published step-by-step algorithm, golden file, norms."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import ConfigError
from evomerge.merging.transform import DeltaInputs
from evomerge.merging.transforms.opcm import Opcm
from tests.merging.transforms.spectral_cases import (
    EXPERTS,
    GOLDEN,
    NAME,
    SEEDS,
    SHAPES,
    check_golden,
    error,
    golden_task_vectors,
    inputs_of,
    merged,
    random_deltas,
)

NORM = "model.layers.0.input_layernorm.weight"


def step(total, delta, alpha):
    """Return the new expert without its overlap, by full SVDs."""
    u, s, vt = np.linalg.svd(total)
    n_protected = int(np.argmax(np.cumsum(s) / s.sum() > alpha)) if alpha < 1.0 else len(s)
    inside = u.T @ delta @ vt.T
    np.fill_diagonal(inside, 0.0)
    inside[:n_protected, :n_protected] = 0.0
    return u @ inside @ vt


def oracle(models, alpha):
    """Return the merge of a whole model, scaled in every step as published.

    Args:
        models: (E,) dicts of arrays; matrices are projected, the rest summed.
    """
    merged_model, scale = dict(models[0]), 1.0
    norms = [np.sqrt(sum((array**2).sum() for array in model.values())) for model in models]
    for t, model in enumerate(models[1:], start=1):
        for key, delta in model.items():
            part = step(merged_model[key], delta, alpha) if delta.ndim == 2 else delta
            merged_model[key] = scale * merged_model[key] + part
        norm = np.sqrt(sum((array**2).sum() for array in merged_model.values()))
        scale = norm / np.mean(norms[: t + 1])
        merged_model = {key: array / scale for key, array in merged_model.items()}
    return merged_model


def as_inputs(models):
    names = {"matrix": NAME, "tall": NAME, "vector": NORM}
    return {key: inputs_of([m[key] for m in models], names[key]) for key in models[0]}


@settings(deadline=None, max_examples=40)
@given(shape=SHAPES, n=EXPERTS, seed=SEEDS, alpha=st.sampled_from([0.3, 0.5, 0.7, 1.0]))
def test_scaling_once_is_scaling_in_every_step(shape, n, seed, alpha):
    keys = {"matrix": shape, "tall": (9, 4), "vector": (6,)}
    arrays = {
        key: random_deltas(size, n, seed=seed + k) for k, (key, size) in enumerate(keys.items())
    }
    models = [{key: found[t] for key, found in arrays.items()} for t in range(n)]
    transform, inputs = Opcm(alpha=alpha), as_inputs(models)
    survey = transform.survey(iter(inputs.values()))
    assert survey.shape == (1,)
    for key, expected in oracle(models, alpha).items():
        (found,) = transform.transform(inputs[key], survey)
        assert error(found.double(), expected) < 1e-5, key


@settings(deadline=None, max_examples=20)
@given(shape=SHAPES, n=EXPERTS, seed=SEEDS)
def test_with_norms_of_each_tensor_it_has_the_mean_norm_of_the_experts(shape, n, seed):
    deltas = random_deltas(shape, n, seed=seed)
    transform = Opcm(norm="tensor")
    assert transform.survey(iter(())).size == 0
    found = merged(transform, deltas)
    mean = np.mean([np.linalg.norm(delta) for delta in deltas])
    assert abs(np.linalg.norm(found) / mean - 1.0) < 1e-6
    expected = oracle([{"matrix": delta} for delta in deltas], 0.5)["matrix"]
    assert error(found, expected) < 1e-5


@pytest.mark.skipif(not GOLDEN.exists(), reason="../shared/golden is not here")
def test_fusion_bench_gives_the_same_tensors():
    deltas, base = golden_task_vectors()
    model = [DeltaInputs(name=NAME, base=base[key], deltas=found) for key, found in deltas.items()]
    check_golden(Opcm(), "opcm_a0.5", tolerance=3e-6, survey=Opcm().survey(model))


def test_what_repeats_the_first_expert_adds_nothing():
    (delta,) = random_deltas((8, 6), 1)
    assert error(merged(Opcm(norm="tensor"), [delta, delta, -delta]), delta) < 1e-6


def test_the_order_of_the_experts_matters():
    deltas = random_deltas((8, 6), 3)
    transform = Opcm(norm="tensor")
    assert transform.is_ordered
    assert error(merged(transform, deltas), merged(transform, deltas[::-1])) > 1e-2


def test_a_low_rank_sum_has_a_diagonal_of_its_rank_only():
    first, second = np.zeros((4, 4)), np.zeros((4, 4))
    first[0, 0] = 1.0
    second[np.diag_indices(4)] = 1.0
    found = merged(Opcm(norm="tensor"), [first, second])
    assert error(found, np.eye(4) * 1.5 / 2.0) < 1e-6


def test_an_empty_or_unchanged_model_has_the_scale_one():
    assert Opcm().survey(iter(())).tolist() == [1.0]
    assert Opcm().survey([inputs_of([np.zeros((2, 2))] * 2)]).tolist() == [1.0]


def test_fallbacks_say_how_the_scale_applies():
    assert "sum" in Opcm().fallback(NORM, (6,))
    assert "mean" in Opcm(norm="tensor").fallback(NORM, (6,))
    assert Opcm().fallback(NAME, (6, 6)) is None
    vector = inputs_of([np.ones(6), 3.0 * np.ones(6)], NORM)
    assert torch.equal(Opcm().transform(vector, np.array([0.5]))[0], torch.full((6,), 2.0))
    assert torch.equal(Opcm(norm="tensor").transform(vector, None)[0], torch.full((6,), 2.0))
    with pytest.raises(ValueError, match="survey"):
        Opcm().transform(vector, None)


@pytest.mark.parametrize("bad", [{"alpha": -0.1}, {"alpha": 1.1}, {"norm": "layer"}])
def test_settings_outside_their_range_are_refused(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        Opcm(**bad)
