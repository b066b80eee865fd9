import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import ConfigError
from evomerge.merging.transform import DeltaInputs
from evomerge.merging.transform_conformance import check_delta_transform
from evomerge.merging.transforms.doge import Doge, shared_outputs
from tests.merging.transforms.spectral_cases import (
    EXPERTS,
    GOLDEN,
    NAME,
    SEEDS,
    SHAPES,
    error,
    golden_task_vectors,
    inputs_of,
    random_deltas,
)

fast = settings(deadline=None, max_examples=20)


def merge(transform, tensors):
    survey = transform.survey(iter(tensors))
    return [transform.transform(part, survey) for part in tensors]


def conflict(deltas, lambdas, shift):
    """Return the published loss: per row, how far the merge is off along each task vector."""
    merged = sum(x * (delta + shift) for x, delta in zip(lambdas, deltas, strict=True))
    return sum((delta * (delta - merged)).sum(1).square().sum() for delta in deltas)


def published_shift(deltas, lambdas, projection, steps, rate, eps=1e-8):
    """Return the shift by autograd and torch's Adam in float64."""
    shift = torch.zeros_like(deltas[0], requires_grad=True)
    adam = torch.optim.Adam([shift], lr=rate, eps=eps)
    for _ in range(steps):
        adam.zero_grad()
        conflict(deltas, lambdas, shift).backward()
        shift.grad -= projection @ shift.grad
        adam.step()
    return shift.detach()


def projection_of(deltas, fraction):
    """Return the (m, m) projection on the shared outputs, each basis cut as published."""
    smallest = min(deltas[0].shape)
    n_each = smallest // len(deltas)
    stacked = torch.cat([torch.linalg.svd(d, full_matrices=False).U[:, :n_each] for d in deltas], 1)
    rank = int(fraction * smallest + 1e-9)
    if n_each == 0 or rank == 0:
        return torch.zeros(len(deltas[0]), len(deltas[0]), dtype=torch.float64)
    left = torch.linalg.svd(stacked, full_matrices=False).U[:, :rank]
    return left @ left.T


@fast
@given(SHAPES, EXPERTS, SEEDS, st.integers(0, 30))
def test_the_shift_is_that_of_autograd_and_torchs_adam(shape, n, seed, steps):
    deltas = [torch.as_tensor(d) for d in random_deltas(shape, n, seed=seed)]
    # No shared outputs: tiny shapes have ties between singular values, whose basis is arbitrary.
    transform = Doge(scale=0.9, step=1e-3, units="weights", density=1.0, steps=steps, shared=0.0)
    (got,) = merge(transform, [inputs_of(deltas)])
    lambdas = [0.9 / d.norm() for d in deltas]
    none = torch.zeros(shape[0], shape[0], dtype=torch.float64)
    shift = published_shift(deltas, lambdas, none, steps, 1e-3)
    for part, delta, scale in zip(got, deltas, lambdas, strict=True):
        assert error(part, scale * (delta + shift)) < 2e-3


@pytest.mark.parametrize("shape", [(24, 18), (18, 24)])
def test_the_gradient_is_projected_off_the_shared_outputs(shape):
    deltas = [torch.as_tensor(d) for d in random_deltas(shape, 3)]
    transform = Doge(scale=0.9, step=1e-3, units="weights", density=1.0, steps=60)
    (got,) = merge(transform, [inputs_of(deltas)])
    lambdas = [0.9 / d.norm() for d in deltas]
    shift = published_shift(deltas, lambdas, projection_of(deltas, 1 / 6), 60, 1e-3)
    for part, delta, scale in zip(got, deltas, lambdas, strict=True):
        assert error(part, scale * (delta + shift)) < 1e-4


def test_the_shift_lowers_the_conflict():
    deltas = [torch.as_tensor(d) for d in random_deltas((20, 12), 3)]
    transform = Doge(scale=1.0, density=1.0)
    (got,) = merge(transform, [inputs_of(deltas)])
    norm = sum(d.norm() for d in deltas) / 3
    lambdas = [norm / d.norm() for d in deltas]
    shift = got[0].double() / lambdas[0] - deltas[0]
    before = conflict(deltas, lambdas, torch.zeros_like(shift))
    assert conflict(deltas, lambdas, shift) < 0.5 * before


def test_shared_outputs_are_those_every_expert_uses():
    generator = np.random.default_rng(0)
    common = np.linalg.qr(generator.standard_normal((18, 2)))[0]
    deltas = []
    for _ in range(3):
        own = np.linalg.qr(generator.standard_normal((18, 3)))[0]
        right = generator.standard_normal((5, 18))
        deltas.append(np.concatenate([10 * common, own], 1) @ right)
    basis = shared_outputs(torch.as_tensor(np.stack(deltas)), 2 / 18)
    assert basis.shape == (18, 2)
    assert error(basis @ basis.T, common @ common.T) < 0.1


@pytest.mark.skipif(not GOLDEN.exists(), reason="../shared/golden is not here")
def test_published_units_give_fusion_benchs_tensors():
    from safetensors.torch import load_file

    vectors, base = golden_task_vectors()
    keys = ["encoder.0.weight", "encoder.2.weight"]
    tensors = [DeltaInputs(NAME, base[key], vectors[key]) for key in keys]
    n = sum(base[key].numel() for key in keys)
    # Its kthvalue keeps one element more than the rounded-down fraction.
    density = (int(0.3 * n) + 1.5) / n
    transform = Doge(scale=0.07, step=1e-4, units="weights", density=density)
    golden = load_file(GOLDEN / "fb" / "doge_ta.safetensors")
    for key, parts in zip(keys, merge(transform, tensors), strict=True):
        wanted = golden[key].double() - base[key].double()
        assert error(sum(parts), wanted) < 1e-4


def test_masks_count_over_the_whole_model():
    first, second = (random_deltas((30, 20), 2, seed=seed) for seed in (0, 1))
    tensors = [inputs_of(first), inputs_of([10.0 * delta for delta in second])]
    results = merge(Doge(steps=0), tensors)
    for k in range(2):
        assert sum(int((parts[k] != 0).sum()) for parts in results) == 360
    assert (results[0][0] == 0).sum() > 550


def test_without_steps_it_is_trimmed_and_equalised():
    deltas = [delta * (k + 1) for k, delta in enumerate(random_deltas((6, 9), 3))]
    (parts,) = merge(Doge(scale=0.7, steps=0, density=1.0), [inputs_of(deltas)])
    norms = [np.linalg.norm(delta) for delta in deltas]
    for part, delta, norm in zip(parts, deltas, norms, strict=True):
        assert error(part, 0.7 * np.mean(norms) / norm * delta) < 1e-6


def test_it_grows_with_the_task_vectors():
    deltas = random_deltas((12, 9), 3)
    (parts,) = merge(Doge(), [inputs_of(deltas)])
    (longer,) = merge(Doge(), [inputs_of([-1e-4 * delta for delta in deltas])])
    for part, other in zip(parts, longer, strict=True):
        assert error(other, -1e-4 * part) < 1e-3


def test_an_expert_without_a_change_takes_no_part():
    deltas = random_deltas((10, 8), 2)
    (alone,) = merge(Doge(density=1.0), [inputs_of(deltas)])
    (parts,) = merge(Doge(density=1.0), [inputs_of([deltas[0], np.zeros((10, 8)), deltas[1]])])
    assert not parts[1].any()
    assert error(parts[0], alone[0]) < 1e-5
    assert error(parts[2], alone[1]) < 1e-5


def test_a_missing_survey_is_refused():
    with pytest.raises(ConfigError, match="survey"):
        Doge().transform(inputs_of(random_deltas((3, 4), 2)), None)


@pytest.mark.parametrize("parameters", [{"steps": 25}, {"steps": 25, "units": "weights"}])
def test_it_conforms(parameters):
    is_relative = "units" not in parameters
    check_delta_transform("doge", parameters=parameters, scale_equivariant=is_relative)


def test_bad_settings_are_refused():
    bad_values = {
        "scale": float("inf"),
        "step": -1.0,
        "units": "metres",
        "density": 0.0,
        "shared": 1.5,
    }
    for name, value in {**bad_values, "steps": 1.5}.items():
        with pytest.raises(ConfigError, match=name):
            Doge(**{name: value})
