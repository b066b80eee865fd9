"""Low-rank parents: truncation, and the rounding of singular vectors."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import ConfigError
from evomerge.merging.transforms.low_rank import LowRankParents, quantised
from tests.merging.transforms.spectral_cases import (
    EXPERTS,
    SEEDS,
    SHAPES,
    error,
    inputs_of,
    oracle_svd,
    random_deltas,
    rotation,
    run,
)

SKILL_PACK = {"bits": [8, 4, 2], "shares": [0.02, 0.18, 0.8]}


@settings(deadline=None, max_examples=40)
@given(shape=SHAPES, n=EXPERTS, seed=SEEDS, fraction=st.sampled_from([0.25, 0.5, 1.0]))
def test_each_expert_is_its_own_best_approximation_of_that_rank(shape, n, seed, fraction):
    deltas = random_deltas(shape, n, seed=seed)
    rank = max(1, int(min(shape) * fraction))
    for part, delta in zip(
        run(LowRankParents(rank_fraction=fraction), deltas), deltas, strict=True
    ):
        u, s, v = (found[..., :rank] for found in oracle_svd(delta))
        assert error(part, u * s @ v.T) < 1e-5


@settings(deadline=None, max_examples=30)
@given(bits=st.integers(2, 8), seed=SEEDS)
def test_columns_have_few_symmetric_levels_and_no_others_are_nearer(bits, seed):
    (columns,) = random_deltas((50, 3), 1, seed=seed)
    found = quantised(torch.from_numpy(columns), bits).numpy()
    top = 2 ** (bits - 1) - 1
    for before, after in zip(columns.T, found.T, strict=True):
        # Every 20th of the largest element from a fifth up is a candidate for the top level.
        errors = []
        for clip in np.arange(4, 21) / 20:
            spacing = np.abs(before).max() * clip / top
            steps = np.clip(np.round(before / spacing), -top, top)
            errors.append(((steps * spacing - before) ** 2).sum())
        assert np.isclose(((after - before) ** 2).sum(), min(errors))
        assert len(np.unique(np.abs(after).round(9))) <= top + 1


def test_more_bits_are_nearer_and_two_bits_are_not_nothing():
    (columns,) = random_deltas((4000, 1), 1)
    norm = np.linalg.norm(columns)
    gaps = [
        np.linalg.norm(quantised(torch.from_numpy(columns), bits).numpy() - columns) / norm
        for bits in range(2, 9)
    ]
    assert all(later < earlier for earlier, later in pairwise(gaps))
    # The best three levels for a normal distribution leave 0.19 of its variance (Max 1960).
    assert gaps[0] ** 2 < 0.2
    assert gaps[-1] < 0.01


def test_leading_ranges_are_rounded_less():
    delta = rotation(40, 1) * np.geomspace(1.0, 0.01, 40) @ rotation(40, 2)
    exact = LowRankParents(rank_fraction=0.5)
    (truncated,) = run(exact, [delta])
    errors = []
    for bits in ((8, 2), (2, 8), (2, 2)):
        (part,) = run(LowRankParents(rank_fraction=0.5, bits=bits, shares=(0.5, 0.5)), [delta])
        errors.append(np.linalg.norm(part - truncated))
    assert errors[0] < errors[1] < errors[2]


def test_the_ranges_of_skill_pack_cover_the_rank():
    transform = LowRankParents(**SKILL_PACK)
    assert transform.bits == (8, 4, 2)
    assert hash(transform) == hash(LowRankParents(bits=(8, 4, 2), shares=(0.02, 0.18, 0.8)))
    for shape in [(200, 220), (9, 4), (1, 1)]:
        (delta,) = random_deltas(shape, 1)
        (part,) = run(transform, [delta])
        assert np.isfinite(part).all()
        assert np.linalg.matrix_rank(part, tol=1e-4) == max(1, min(shape) // 4)


def test_other_tensors_keep_their_task_vectors():
    inputs = inputs_of([np.ones(3), 2.0 * np.ones(3)], "model.norm.weight")
    assert "as they are" in LowRankParents().fallback("model.norm.weight", (3,))
    parts = LowRankParents().transform(inputs, None)
    for part, delta in zip(parts, inputs.deltas, strict=True):
        assert torch.equal(part, delta)
        assert part.data_ptr() != delta.data_ptr()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"rank_fraction": 0.0}, "rank_fraction"),
        ({"bits": [8, 4]}, "one share"),
        ({"bits": 8}, "bits is 8"),
        ({"bits": [1], "shares": [1.0]}, "bits holds 1"),
        ({"bits": [8.0], "shares": [1.0]}, "bits holds 8.0"),
        ({"bits": [8], "shares": ["1"]}, "shares holds '1'"),
        ({"bits": [8, 4], "shares": [0.5, 0.6]}, "sums to 1.1"),
        ({"bits": [8, 4], "shares": [1.0, 0.0]}, "shares holds 0"),
    ],
)
def test_settings_outside_their_range_are_refused(bad, message):
    with pytest.raises(ConfigError, match=message):
        LowRankParents(**bad)
