"""Segments against the dense float64 vectors they stand for."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.core.linear_span import (
    LinearSpan,
    Segments,
    block_size,
    on_common_breaks,
    slerp_weights,
    split_crossover,
)
from evomerge.core.recipe import Recipe

D = 40


def make_span(vectors: np.ndarray, block: int = 1) -> LinearSpan:
    k, d = vectors.shape
    basis = vectors.copy()
    basis[1:] -= vectors[0]
    n_blocks = -(-d // block)
    grams = np.stack(
        [
            basis[:, i * block : (i + 1) * block] @ basis[:, i * block : (i + 1) * block].T
            for i in range(n_blocks)
        ]
    )
    return LinearSpan.from_block_grams(tuple(f"m{i}" for i in range(k)), d, block, grams)


def dense(segments: Segments, vectors: np.ndarray) -> np.ndarray:
    rows = np.repeat(segments.coefficients, np.diff(segments.breaks), axis=0)
    return np.einsum("dk,kd->d", rows, vectors)


def dense_angle(x: np.ndarray, y: np.ndarray) -> float:
    norms = np.linalg.norm(x), np.linalg.norm(y)
    if 0.0 in norms:
        return 0.0
    return 2.0 * math.asin(min(np.linalg.norm(x / norms[0] - y / norms[1]) / 2.0, 1.0))


@st.composite
def spans_and_pairs(draw):
    k = draw(st.integers(2, 4))
    block = draw(st.sampled_from([1, 4]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale = draw(st.sampled_from([1.0, 1e-3]))
    base = rng.normal(size=D)
    vectors = np.stack([base, *(base + scale * rng.normal(size=(k - 1, D)))])
    pair = []
    for _ in range(2):
        inner = draw(st.sets(st.integers(1, D // block - 1), max_size=6))
        breaks = np.array([0, *(block * i for i in sorted(inner)), D])
        pair.append(Segments(breaks, rng.normal(size=(len(breaks) - 1, k)) + 1.0 / k))
    cut = block * draw(st.integers(0, D // block))
    return vectors, make_span(vectors, block), *pair, cut


@given(spans_and_pairs())
@settings(max_examples=150, deadline=None)
def test_inner_products_and_angles_match_dense_vectors(case):
    vectors, span, a, b, cut = case
    x, y = dense(a, vectors), dense(b, vectors)
    scale = np.linalg.norm(x) * np.linalg.norm(y)
    for start, stop in ((0, None), (0, cut), (cut, D)):
        part = slice(start, stop)
        assert span.inner(a, b, start, stop) == pytest.approx(x[part] @ y[part], abs=1e-11 * scale)
        if stop != start and len(x[part]) >= 4:
            expected = dense_angle(x[part], y[part])
            assert span.angle(a, b, start, stop) == pytest.approx(expected, rel=1e-6, abs=1e-9)


@given(spans_and_pairs(), st.floats(0.0, 1.0))
@settings(max_examples=150, deadline=None)
def test_split_crossover_matches_dense_vectors(case, w):
    vectors, span, a, b, cut = case
    angle = span.angle(a, b)
    left, right = slerp_weights(w, angle), slerp_weights(1.0 - w, angle)
    child = split_crossover(a, b, cut, left, right)
    x, y = dense(a, vectors), dense(b, vectors)
    before = np.arange(D) < cut
    expected = np.where(before, left[0] * x + left[1] * y, right[0] * x + right[1] * y)
    np.testing.assert_allclose(dense(child, vectors), expected, rtol=1e-12, atol=1e-11)
    assert (np.diff(child.breaks) > 0).all()
    assert len(child.coefficients) <= len(a.coefficients) + len(b.coefficients)


@given(spans_and_pairs())
@settings(max_examples=100, deadline=None)
def test_common_breaks_change_no_value(case):
    vectors, span, a, b, cut = case
    x, y = on_common_breaks(a, b, cut)
    assert x.breaks is y.breaks
    assert cut in x.breaks
    np.testing.assert_array_equal(dense(x, vectors), dense(a, vectors))
    np.testing.assert_array_equal(dense(y, vectors), dense(b, vectors))
    again, _ = on_common_breaks(x, y, cut)
    assert again.breaks is x.breaks
    assert span.angle(x, y) == pytest.approx(span.angle(a, b), rel=1e-9, abs=1e-12)


@given(spans_and_pairs(), st.integers(1, 8))
@settings(max_examples=100, deadline=None)
def test_simplify_keeps_the_limit_and_what_already_fits(case, limit):
    _, span, a, _, _ = case
    simple = span.simplify(a, limit)
    assert len(simple.coefficients) <= limit
    assert simple.breaks[0] == 0
    assert simple.breaks[-1] == D
    if len(a.coefficients) <= limit:
        assert simple is a


def test_simplify_joins_the_break_that_matters_least():
    vectors = np.random.default_rng(0).normal(size=(2, D))
    span = make_span(vectors)
    coefficients = np.array([[1.0, 0.0], [0.99, 0.01], [0.0, 1.0]])
    simple = span.simplify(Segments(np.array([0, 10, 30, D]), coefficients), 2)
    np.testing.assert_array_equal(simple.breaks, [0, 30, D])
    np.testing.assert_allclose(simple.coefficients[0], (coefficients[0] + 2 * coefficients[1]) / 3)
    np.testing.assert_array_equal(simple.coefficients[1], coefficients[2])


def test_tiny_angles_keep_their_digits():
    rng = np.random.default_rng(1)
    base = rng.normal(size=D)
    vectors = np.stack([base, base + 1e-7 * rng.normal(size=D)])
    span = make_span(vectors)
    expected = dense_angle(vectors[0], vectors[1])
    assert span.angle(span.single(0), span.single(1)) == pytest.approx(expected, rel=1e-6)


def test_zero_vector_has_angle_zero():
    span = make_span(np.random.default_rng(2).normal(size=(2, D)))
    zero = Segments(np.array([0, D]), np.zeros((1, 2)))
    assert span.angle(zero, span.single(0)) == 0.0


def test_slerp_of_equal_directions_is_lerp():
    assert slerp_weights(0.25, 0.0) == (0.75, 0.25)
    assert slerp_weights(0.25, 1e-7) == (0.75, 0.25)
    u, v = slerp_weights(0.5, 1.0)
    assert u == v == pytest.approx(math.sin(0.5) / math.sin(1.0))


def test_recipes_round_trip_and_foreign_ones_are_refused():
    span = make_span(np.random.default_rng(3).normal(size=(2, D)))
    segments = Segments(np.array([0, 7, D]), np.array([[0.5, 0.5], [1.0, 0.0]]))
    back = span.segments(span.recipe(segments))
    assert back is not None
    np.testing.assert_array_equal(back.breaks, segments.breaks)
    np.testing.assert_array_equal(back.coefficients, segments.coefficients)
    raw = {"normalize": False}
    whole = Recipe("linear", span.sources, {"weights": np.array([[0.3, 0.7]])}, settings=raw)
    assert span.segments(whole) is not None
    for foreign in (
        Recipe("linear", span.sources, {"weights": np.array([[0.3, 0.7]])}),
        Recipe("ties", span.sources, {"weights": np.array([[0.3, 0.7]])}, settings=raw),
        Recipe("linear", ("m1", "m0"), {"weights": np.array([[0.3, 0.7]])}, settings=raw),
        Recipe("linear", span.sources, {"weights": np.ones((2, 2))}, "layer", settings=raw),
    ):
        assert span.segments(foreign) is None


@pytest.mark.parametrize("n", [1, 19_210, 2**18, 2**18 + 1, 7_000_000_000])
def test_blocks_are_single_elements_or_few(n):
    size = block_size(n)
    assert size & (size - 1) == 0
    assert -(-n // size) <= 2**18


def test_splits_snap_down_to_blocks():
    span = make_span(np.random.default_rng(4).normal(size=(2, 10)), block=4)
    assert [span.snap(i) for i in (0, 3, 4, 9, 10)] == [0, 0, 4, 8, 10]
