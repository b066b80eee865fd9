"""Properties that all spectral transforms share (operators.md, section 6)."""

import dataclasses

import numpy as np
import pytest
import torch

from evomerge.merging.transform import delta_transforms
from evomerge.merging.transform_conformance import check_delta_transform
from evomerge.merging.transforms import spectral
from evomerge.merging.transforms.iso_c import IsoC
from evomerge.merging.transforms.iso_cts import IsoCts
from evomerge.merging.transforms.knots import Knots
from evomerge.merging.transforms.low_rank import LowRankParents
from evomerge.merging.transforms.opcm import Opcm
from evomerge.merging.transforms.r_tsvm import RTsvm
from evomerge.merging.transforms.tsv_m import TsvM
from tests.merging.transforms.spectral_cases import (
    error,
    inputs_of,
    merged,
    random_deltas,
    rotation,
    run,
)

TRANSFORMS = {
    "tsv_m": TsvM(),
    "tsv_m_full": TsvM(share="full"),
    "r_tsvm": RTsvm(),
    "iso_c": IsoC(),
    "iso_cts": IsoCts(common_fraction=0.5),
    "knots": Knots(),
    "knots_ta": Knots(method="ta"),
    "opcm": Opcm(norm="tensor"),
    "low_rank": LowRankParents(rank_fraction=0.5),
    "low_rank_quantised": LowRankParents(rank_fraction=1.0, bits=(4, 2), shares=(0.5, 0.5)),
}
every = pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)


@pytest.mark.parametrize(
    "transform", [*TRANSFORMS.values(), Opcm(norm="model")], ids=[*TRANSFORMS, "opcm_model"]
)
def test_the_conformance_suite_passes(transform):
    parameters = dataclasses.asdict(transform)
    check_delta_transform(type(transform), parameters=parameters, tolerance=1e-5)


def some(*names):
    return pytest.mark.parametrize("transform", [TRANSFORMS[name] for name in names], ids=names)


def test_every_name_is_registered():
    names = {"tsv_m", "r_tsvm", "iso_c", "iso_cts", "knots", "opcm", "low_rank"}
    assert names <= set(delta_transforms.names())
    per_expert = {name for name in names if delta_transforms.get(name).outputs == "experts"}
    assert per_expert == {"tsv_m", "r_tsvm", "low_rank"}


@every
@pytest.mark.parametrize("factor", [-1.0, 0.5, 3.0, 2.0**-40])
def test_scaling_and_turning_the_sign_of_every_expert_does_the_same_to_the_merge(transform, factor):
    deltas = random_deltas((10, 7), 3)
    found = merged(transform, [factor * delta for delta in deltas])
    assert error(found, factor * merged(transform, deltas)) < 2e-6


@some("tsv_m", "tsv_m_full", "iso_c", "iso_cts", "knots_ta", "opcm", "low_rank")
@pytest.mark.parametrize("shape", [(10, 7), (7, 10), (8, 8)])
def test_rotations_of_outputs_and_inputs_rotate_the_merge(transform, shape):
    deltas = random_deltas(shape, 3, seed=3)
    out, into = rotation(shape[0], 8), rotation(shape[1], 9)
    found = merged(transform, [out @ delta @ into for delta in deltas])
    # The rotated task vectors are rounded to float32, which nearby singular values amplify.
    assert error(found, out @ merged(transform, deltas) @ into) < 1e-5


@some("tsv_m", "r_tsvm", "iso_c", "iso_cts", "knots", "low_rank")
def test_the_order_of_the_experts_does_not_matter(transform):
    deltas = random_deltas((9, 12), 4)
    found = merged(transform, deltas[::-1])
    assert error(found, merged(transform, deltas)) < 1e-6


@some("tsv_m", "tsv_m_full", "r_tsvm", "knots_ta", "opcm")
@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (6, 1), (9, 5), (5, 9)])
def test_a_single_expert_comes_back_at_full_rank(transform, shape):
    (delta,) = random_deltas(shape, 1)
    assert error(merged(transform, [delta]), delta) < 2e-6


@every
@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (6, 1), (3, 40), (40, 3), (5, 5)])
@pytest.mark.parametrize("n", [1, 2, 7])
def test_zero_experts_give_exact_zeros_and_any_shape_is_finite(transform, shape, n):
    assert not merged(transform, [np.zeros(shape)] * n).any()
    deltas = random_deltas(shape, n)
    deltas[-1] = np.zeros(shape)
    for part in run(transform, deltas):
        assert part.shape == shape
        assert np.isfinite(part).all()
        assert np.abs(part).max() <= 10.0 * np.abs(np.stack(deltas)).sum(0).max()


@some("tsv_m", "tsv_m_full", "r_tsvm", "low_rank")
def test_the_part_of_an_expert_without_a_change_is_zero(transform):
    deltas = [*random_deltas((8, 8), 2), np.zeros((8, 8))]
    parts = run(transform, deltas)
    assert not parts[2].any()
    shuffled = run(transform, [deltas[2], deltas[0], deltas[1]])
    assert error(shuffled[1], parts[0]) < 1e-6


@every
def test_low_rank_experts_give_a_merge_in_their_span(transform):
    deltas = random_deltas((16, 12), 3, rank=2)
    found = merged(transform, deltas)
    if transform is TRANSFORMS["low_rank_quantised"]:  # rounding leaves the span
        assert np.isfinite(found).all()
        return
    outside = np.linalg.svd(np.hstack(deltas))[0][:, 6:]
    assert np.abs(outside.T @ found).max() < 1e-5 * np.abs(found).max()


@every
def test_the_float32_path_of_large_matrices_agrees(transform, monkeypatch):
    deltas = random_deltas((30, 24), 3)
    exact = merged(transform, deltas)
    monkeypatch.setattr(spectral, "FLOAT64_SIDE", 0)
    assert error(merged(transform, deltas), exact) < 1e-4


@every
def test_convolutions_are_matrices_of_outputs_times_the_rest(transform):
    deltas = random_deltas((4, 12), 2)
    found = merged(transform, [delta.reshape(4, 3, 2, 2) for delta in deltas])
    assert found.shape == (4, 3, 2, 2)
    assert np.array_equal(found.reshape(4, 12), merged(transform, deltas))


@every
@pytest.mark.parametrize("shape", [(6, 5), (5,), ()])
def test_inputs_stay_as_they_are_and_results_are_float32(transform, shape):
    inputs = inputs_of(random_deltas(shape, 2))
    before = [delta.clone() for delta in inputs.deltas]
    parts = transform.transform(inputs, None)
    assert len(parts) == (2 if transform.outputs == "experts" else 1)
    for part in parts:
        assert part.dtype == torch.float32
        assert tuple(part.shape) == shape
        part.zero_()
    assert all(torch.equal(a, b) for a, b in zip(before, inputs.deltas, strict=True))


@some("tsv_m", "r_tsvm", "iso_c", "iso_cts", "knots", "opcm")
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model.embed_tokens.weight", (6, 5)),
        ("lm_head.weight", (6, 5)),
        ("model.layers.0.mlp.gate.weight", (6, 5)),
        ("model.layers.0.self_attn.q_proj.bias", (6,)),
    ],
)
def test_what_is_no_linear_map_is_averaged(transform, name, shape):
    deltas = random_deltas(shape, 3)
    assert transform.fallback(name, shape) is not None
    assert error(merged(transform, deltas, name=name), sum(deltas) / 3) < 1e-6
