"""TSV-M: oracle, golden files, linearity."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import ConfigError
from evomerge.merging.transforms.tsv_m import TsvM, rank_of
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
    run,
)


def oracle(deltas, ranks, weights):
    """Return the merge: sum_k w_k U^_k S_k V^_k^T, the polar factors by pseudo-inverse roots."""
    factors = [oracle_svd(d) for d in deltas]
    us = [u[:, :r] for (u, _, _), r in zip(factors, ranks, strict=True)]
    vs = [v[:, :r] for (_, _, v), r in zip(factors, ranks, strict=True)]
    values = [w * s[:r] for (_, s, _), r, w in zip(factors, ranks, weights, strict=True)]
    left, right = oracle_polar(np.hstack(us)), oracle_polar(np.hstack(vs))
    return left * np.concatenate(values) @ right.T


@settings(deadline=None, max_examples=60)
@given(
    shape=SHAPES,
    n=EXPERTS,
    seed=SEEDS,
    share=st.sampled_from(["equal", "full"]),
    fraction=st.sampled_from([1.0, 0.5]),
)
def test_the_sum_of_the_parts_is_the_merge_of_the_paper(shape, n, seed, share, fraction):
    deltas = random_deltas(shape, n, seed=seed)
    rank = max(1, int(min(shape) * fraction / (n if share == "equal" else 1)))
    expected = oracle(deltas, [rank] * n, [1.0] * n)
    # The oracle's square roots lose half the digits of small singular values.
    assert error(merged(TsvM(share=share, rank_fraction=fraction), deltas), expected) < 1e-5


@settings(deadline=None, max_examples=20)
@given(seed=SEEDS, n=st.integers(2, 4))
def test_weights_of_the_parts_are_the_weights_of_the_tasks(seed, n):
    deltas = random_deltas((12, 9), n, seed=seed)
    weights = np.random.default_rng(seed).uniform(0.0, 2.0, n)
    parts = run(TsvM(), deltas)
    total = sum(w * part for w, part in zip(weights, parts, strict=True))
    assert error(total, oracle(deltas, [9 // n] * n, weights)) < 1e-5


@pytest.mark.skipif(not GOLDEN.exists(), reason="../shared/golden is not here")
@pytest.mark.parametrize(("case", "share"), [("tsvm", "equal"), ("tsvm_lossless", "full")])
def test_fusion_bench_gives_the_same_tensors(case, share):
    # Its float32 SVDs and their polar factors are good to about 2e-6 of the largest change.
    check_golden(TsvM(share=share), case, tolerance=5e-6)


def test_parts_of_different_experts_are_orthogonal():
    parts = run(TsvM(), random_deltas((20, 16), 4))
    for i in range(4):
        assert np.linalg.matrix_rank(parts[i], tol=1e-4) == 4
        for j in range(i):
            assert np.abs(parts[i].T @ parts[j]).max() < 1e-4
            assert np.abs(parts[i] @ parts[j].T).max() < 1e-4


def test_equal_experts_share_their_directions():
    (delta,) = random_deltas((8, 8), 1)
    u, s, v = oracle_svd(delta)
    truncated = u[:, :4] * s[:4] @ v[:, :4].T
    assert error(merged(TsvM(), [delta, delta]), truncated) < 1e-6


def test_the_rank_is_rounded_down_but_not_by_rounding_error():
    assert [rank_of(3, 1 / 3), rank_of(6, 1 / 3), rank_of(49, 1 / 49)] == [1, 2, 1]
    assert [rank_of(10, 0.19), rank_of(2, 0.1)] == [1, 1]


@pytest.mark.parametrize("bad", [{"rank_fraction": 0.0}, {"rank_fraction": 1.5}, {"share": "all"}])
def test_settings_outside_their_range_are_refused(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        TsvM(**bad)
