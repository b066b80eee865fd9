"""Iso-C and Iso-CTS: oracles, golden files, the flat spectrum."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import ConfigError
from evomerge.merging.transforms.iso_c import IsoC
from evomerge.merging.transforms.iso_cts import IsoCts
from tests.merging.transforms.spectral_cases import (
    EXPERTS,
    GOLDEN,
    SEEDS,
    SHAPES,
    check_golden,
    error,
    merged,
    oracle_polar,
    oracle_svd,
    random_deltas,
)

golden = pytest.mark.skipif(not GOLDEN.exists(), reason="../shared/golden is not here")


def iso_cts_oracle(deltas, fraction):
    """Return Iso-CTS step by step, remainders by an explicit projector."""
    full, n = min(deltas[0].shape), len(deltas)
    n_each = min(round((full - int(full * fraction)) / n), full // n)
    u, s, v = (part[..., : full - n * n_each] for part in oracle_svd(sum(deltas)))
    us, ss, vs = [u], [s], [v]
    projector = np.eye(u.shape[0]) - u @ u.T
    for delta in deltas:
        if n_each and np.linalg.norm(projector @ delta) > 1e-6 * np.linalg.norm(delta):
            parts = [part[..., :n_each] for part in oracle_svd(projector @ delta)]
            for found, part in zip((us, ss, vs), parts, strict=True):
                found.append(part)
    left, right = oracle_polar(np.hstack(us)), oracle_polar(np.hstack(vs))
    return np.concatenate(ss).mean() * left @ right.T


@settings(deadline=None, max_examples=40)
@given(shape=SHAPES, n=EXPERTS, seed=SEEDS)
def test_iso_c_has_a_flat_spectrum_and_keeps_the_nuclear_norm(shape, n, seed):
    deltas = random_deltas(shape, n, seed=seed)
    found = np.linalg.svd(merged(IsoC(), deltas), compute_uv=False)
    before = np.linalg.svd(sum(deltas), compute_uv=False)
    assert error(found, np.full_like(before, before.mean())) < 1e-5


@settings(deadline=None, max_examples=40)
@given(shape=SHAPES, n=EXPERTS, seed=SEEDS)
def test_iso_c_is_the_polar_factor_times_the_mean_singular_value(shape, n, seed):
    deltas = random_deltas(shape, n, seed=seed)
    u, s, v = oracle_svd(sum(deltas))
    assert error(merged(IsoC(), deltas), s.mean() * u @ v.T) < 1e-6


def test_iso_c_fills_in_no_direction_that_the_sum_lacks():
    deltas = random_deltas((20, 12), 2, rank=3)
    found = np.linalg.svd(merged(IsoC(), deltas), compute_uv=False)
    before = np.linalg.svd(sum(deltas), compute_uv=False)
    assert error(found[:6], np.full(6, before[:6].mean())) < 1e-5
    assert found[6:].max() < 1e-5 * found[0]


@settings(deadline=None, max_examples=60)
@given(shape=SHAPES, n=EXPERTS, seed=SEEDS, fraction=st.sampled_from([0.0, 0.4, 0.5, 0.8, 1.0]))
def test_iso_cts_is_that_of_its_definition(shape, n, seed, fraction):
    deltas = random_deltas(shape, n, seed=seed)
    expected = iso_cts_oracle(deltas, fraction)
    # The oracle's square roots lose half the digits of small singular values.
    assert error(merged(IsoCts(common_fraction=fraction), deltas), expected) < 1e-5


def test_iso_cts_with_common_directions_only_is_iso_c():
    deltas = random_deltas((9, 7), 3)
    assert error(merged(IsoCts(common_fraction=1.0), deltas), merged(IsoC(), deltas)) < 1e-6


def test_iso_cts_keeps_directions_of_each_expert_that_the_sum_hides():
    large, small = np.zeros((4, 4)), np.zeros((4, 4))
    large[0, 0], large[1, 1], small[2, 2], small[3, 3] = 9.0, 8.0, 0.5, 0.4
    found = merged(IsoCts(common_fraction=0.5), [large, small])
    assert error(found, np.diag([1.0, 1.0, 1.0, 0.0]) * (9.0 + 8.0 + 0.5) / 3.0) < 1e-6


@golden
def test_fusion_bench_gives_the_same_iso_c():
    check_golden(IsoC(), "iso_c", tolerance=2e-6)


@golden
@pytest.mark.parametrize("fraction", [0.8, 0.4])
def test_fusion_bench_gives_the_same_iso_cts(fraction):
    # Its float32 SVDs and their polar factors are good to about 3e-6 of the largest change.
    transform = IsoCts(common_fraction=fraction)
    check_golden(transform, f"iso_cts_{fraction}", tolerance=5e-6)


@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan"), "0.8"])
def test_a_fraction_outside_zero_to_one_is_refused(bad):
    with pytest.raises(ConfigError, match="common_fraction"):
        IsoCts(common_fraction=bad)
