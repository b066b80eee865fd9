import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.merging.low_rank import (
    LowRank,
    concatenate,
    extract,
    read_factors,
    recompress,
    stacked_svd,
)
from tests.merging.low_rank_cases import dense, random_factors
from tests.merging.memory_source import make_sources
from tests.merging.tensors import relative_error

sizes = st.integers(1, 9)


@settings(deadline=None, max_examples=40)
@given(sizes, sizes, st.lists(st.integers(0, 4), min_size=1, max_size=4), st.booleans(), st.data())
def test_concatenation_is_task_arithmetic_on_the_products(m, n, ranks, is_transposed, data):
    parts = random_factors(m, n, ranks, seed=m * n, is_transposed=is_transposed)
    number = st.floats(-2.0, 2.0, allow_subnormal=False)
    scales = data.draw(st.lists(number, min_size=len(parts), max_size=len(parts)))
    expected = sum(c * dense(part) for c, part in zip(scales, parts, strict=True))
    merged = concatenate(parts, scales)
    assert merged.shape == (m, n)
    assert merged.rank == sum(r for r, c in zip(ranks, scales, strict=True) if c != 0.0)
    size = sum(float(dense(part).abs().max()) for part in parts) + 1e-30
    assert float((merged.product().double() - expected).abs().max()) <= 1e-5 * size


def test_parts_stored_either_way_concatenate():
    straight, turned = random_factors(5, 7, [2]) + random_factors(5, 7, [3], is_transposed=True)
    merged = concatenate([straight, turned], [0.5, -1.5])
    assert relative_error(merged.product(), 0.5 * dense(straight) - 1.5 * dense(turned)) < 1e-6


@pytest.mark.parametrize("is_transposed", [False, True])
def test_rows_and_transposes_are_those_of_the_tensor(is_transposed):
    (part,) = random_factors(6, 4, [2], is_transposed=is_transposed)
    assert torch.allclose(part.rows(1, 4).product(), part.product()[1:4])
    assert torch.equal(part.transposed().product(), part.product().T)
    assert part.transposed().shape == (4, 6)
    for other in (False, True):
        torch.testing.assert_close(part.turned(other).product(), part.product())
        assert part.turned(other).is_transposed == other
    assert part.square_norm() == pytest.approx(float(dense(part).square().sum()))


@settings(deadline=None, max_examples=30)
@given(sizes, sizes, st.integers(1, 12), st.integers(1, 12))
def test_recompression_is_the_truncated_svd(m, n, rank, kept):
    (part,) = random_factors(m, n, [rank], seed=rank)
    found, error = recompress(part, kept)
    u, s, vt = np.linalg.svd(dense(part).numpy(), full_matrices=False)
    best = (u[:, :kept] * s[:kept]) @ vt[:kept]
    assert found.rank <= kept
    tail = np.sqrt((s[kept:] ** 2).sum() / (s**2).sum())
    assert error == pytest.approx(tail, abs=1e-9)
    gap = (found.product().double() - dense(part)).norm() / dense(part).norm()
    assert float(gap) == pytest.approx(tail, abs=1e-6)
    if kept >= rank or (kept < len(s) and s[kept - 1] > 1.01 * s[kept]):
        assert relative_error(found.product(), best) < 1e-4


@pytest.mark.parametrize("is_transposed", [False, True])
def test_recompression_to_full_rank_is_exact(is_transposed):
    merged = concatenate(random_factors(8, 11, [3, 2], is_transposed=is_transposed), [1.0, -0.7])
    found, error = recompress(merged, 5)
    assert found.rank == 5
    assert error == 0.0
    assert found.is_transposed == is_transposed
    assert relative_error(found.product(), dense(merged)) < 1e-6


def test_a_zero_product_recompresses():
    found, error = recompress(LowRank.zero(4, 3), 2)
    assert error == 0.0
    assert torch.equal(found.product(), torch.zeros(4, 3))
    assert LowRank.zero(4, 3, is_transposed=True).product().shape == (3, 4)


@settings(deadline=None, max_examples=30)
@given(sizes, sizes, st.integers(1, 9))
def test_extraction_of_a_dense_matrix_is_the_best_approximation(m, n, rank):
    delta = torch.randn(m, n, generator=torch.Generator().manual_seed(m + 10 * n))
    found = extract(delta, rank)
    assert not found.is_transposed
    sizes_ = np.linalg.svd(delta.double().numpy(), compute_uv=False)
    left = (delta.double() - dense(found)).norm()
    assert float(left) == pytest.approx(np.sqrt((sizes_[rank:] ** 2).sum()), abs=1e-5)


def test_a_decomposition_has_one_sign():
    (part,) = random_factors(6, 5, [3])
    flipped = LowRank(-part.a, -part.b)
    for decompose in (lambda p: recompress(p, 3)[0], lambda p: extract(p.product(), 3)):
        one, two = decompose(part), decompose(flipped)
        torch.testing.assert_close(one.a, two.a)
        torch.testing.assert_close(one.b, two.b)
        largest = one.b.abs().argmax(0)
        assert bool((one.b.gather(0, largest[None]) > 0).all())


@pytest.mark.parametrize("shape", [(7, 9), (90, 70)])
def test_extraction_leaves_out_what_is_rounding(shape):
    (part,) = random_factors(*shape, [2])
    found = extract(part.product(), 5)
    assert found.rank == 2
    assert relative_error(found.product(), dense(part)) < 1e-6
    assert extract(torch.zeros(3, 4), 2).rank == 0


@settings(deadline=None, max_examples=30)
@given(sizes, sizes, st.lists(st.integers(0, 3), min_size=1, max_size=3))
def test_the_stacked_svd_is_that_of_the_dense_row_of_task_vectors(m, n, ranks):
    parts = random_factors(m, n, ranks, seed=3)
    u, values, rights = stacked_svd(parts)
    row = torch.cat([dense(part) for part in parts], dim=1)
    again = torch.cat([(u * values) @ v.T for v in rights], dim=1)
    torch.testing.assert_close(again, row)
    wanted = np.linalg.svd(row.numpy(), compute_uv=False)
    shown = np.zeros(max(len(wanted), len(values)))
    shown[: len(values)] = values.numpy()
    np.testing.assert_allclose(shown[: len(wanted)], wanted, atol=1e-6)
    torch.testing.assert_close(u.T @ u, torch.eye(u.shape[1], dtype=torch.float64))


def test_a_source_without_factors_has_none():
    source = make_sources(1)["e1"]
    assert read_factors(source, "model.norm.weight") is None
