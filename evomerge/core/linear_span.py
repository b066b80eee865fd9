"""Models inside the span of their sources: segments of coefficients, angles, SLERP, crossover.

Every child that linear merging, SLERP and split-point crossover can reach is
x = sum_k c[s(p), k] * theta_k[p] for element p in segment s(p). Norms and angles follow from
prefix Gram matrices; no weights are needed (spec: algorithms.md §11).

Shape letters: K sources, S segments, B blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from evomerge.core.arrays import FloatArray, IntArray
from evomerge.core.recipe import SEGMENTS, Recipe


@dataclass(frozen=True, eq=False)
class Segments:
    """Piecewise-constant coefficients over the flattened parameter order.

    Attributes:
        breaks: (S + 1,) element offsets from 0 to D.
        coefficients: (S, K) weight of each source in each segment.
    """

    breaks: IntArray
    coefficients: FloatArray


def block_size(n_elements: int) -> int:
    """Return the block that segment breaks snap to, a power of two.

    One element up to 2**18 elements; beyond that at most 2**17 blocks, which is the 64k-element
    block of the spec at 7 billion parameters and keeps the prefix Grams under a few MB.
    """
    size = 1
    if n_elements <= 2**18:
        return size
    while n_elements > size * 2**17:
        size *= 2
    return size


@dataclass(frozen=True, eq=False)
class LinearSpan:
    """Geometry of the span of K sources.

    Attributes:
        sources: (K,) source ids, in recipe order.
        n_elements: D, number of merged elements.
        block: Elements per block; the last block may be shorter.
        prefix: (B + 1, K, K) cumulative Gram matrices over the basis
            (theta_0, theta_1 - theta_0, …), float64. Differences instead of raw sources keep
            the digits of small task vectors.
        tensors: (T + 1,) where tensors begin, then D; None: all elements are one tensor.
    """

    sources: tuple[str, ...]
    n_elements: int
    block: int
    prefix: FloatArray
    tensors: IntArray | None = None

    @classmethod
    def from_block_grams(
        cls,
        sources: tuple[str, ...],
        n_elements: int,
        block: int,
        grams: FloatArray,
        tensors: IntArray | None = None,
    ) -> LinearSpan:
        """Build from (B, K, K) Gram matrices of single blocks."""
        k = len(sources)
        prefix = np.zeros((len(grams) + 1, k, k))
        np.cumsum(grams, axis=0, out=prefix[1:])
        return cls(sources, n_elements, block, prefix, tensors)

    def single(self, source: int) -> Segments:
        """Return source number `source` as segments."""
        coefficients = np.zeros((1, len(self.sources)))
        coefficients[0, source] = 1.0
        return Segments(np.array([0, self.n_elements]), coefficients)

    def snap(self, element: int) -> int:
        """Return the block boundary at or below `element`."""
        return element if element >= self.n_elements else element - element % self.block

    def _prefix_at(self, breaks: IntArray) -> FloatArray:
        blocks = breaks if self.block == 1 else -(-breaks // self.block)
        return self.prefix.take(blocks, axis=0)

    def _basis(self, coefficients: FloatArray) -> FloatArray:
        """Turn coefficients over theta_k into coefficients over (theta_0, differences)."""
        basis = coefficients.copy()
        np.add.reduce(coefficients, axis=1, out=basis[:, 0])
        return basis

    def _grams(self, breaks: IntArray, start: int, stop: int | None) -> FloatArray:
        """Return (S, K, K) Gram matrices of the segments, cut to elements [start, stop)."""
        end = self.n_elements if stop is None else stop
        if start > 0 or end < self.n_elements:
            breaks = breaks.clip(start, end)
        prefix = self._prefix_at(breaks)
        grams: FloatArray = prefix[1:] - prefix[:-1]
        return grams

    def inner(self, a: Segments, b: Segments, start: int = 0, stop: int | None = None) -> float:
        """Return <a, b> over elements [start, stop)."""
        breaks, rows_a, rows_b = _refine(a, b)
        products = self._basis(rows_a)[:, :, None] * self._basis(rows_b)[:, None, :]
        return float((products * self._grams(breaks, start, stop)).sum())

    def angle(self, a: Segments, b: Segments, start: int = 0, stop: int | None = None) -> float:
        """Return the angle between a and b over [start, stop), in radians; 0 for a zero vector.

        Computed from the difference of the unit vectors, 2 asin(d / 2): fine-tunes of one base
        have cosines above 0.999, where arccos loses half the digits.
        """
        breaks, rows_a, rows_b = _refine(a, b)
        grams = self._grams(breaks, start, stop)
        basis = self._basis(np.concatenate((rows_a, rows_b))).reshape(2, *rows_a.shape)
        norm_a, norm_b = _norms(grams, basis)
        if norm_a == 0.0 or norm_b == 0.0:
            return 0.0
        (distance,) = _norms(grams, basis[:1] / norm_a - basis[1:] / norm_b)
        return 2.0 * math.asin(min(distance / 2.0, 1.0))

    def crossed_by_tensor(self, a: Segments, b: Segments, split: int, t: float) -> Segments:
        """Return slerp_t(a, b) before element `split` and slerp_{1-t} after it, tensor by tensor.

        Every tensor has the angle of its own a and b; one shorter than a block may have none, and
        is mixed linearly.
        """
        ends = np.array([0, self.n_elements]) if self.tensors is None else self.tensors
        breaks, rows_a, rows_b = _refine(a, b, split, *ends.tolist())
        grams, starts = self._grams(breaks, 0, None), breaks[:-1]
        firsts = starts.searchsorted(ends[:-1])
        tensor = ends.searchsorted(starts, side="right") - 1
        basis_a, basis_b = self._basis(rows_a), self._basis(rows_b)
        size_a = _norms_of_runs(grams, basis_a, firsts)
        size_b = _norms_of_runs(grams, basis_b, firsts)
        has_angle = (size_a > 0.0) & (size_b > 0.0)
        unit_a = basis_a / np.where(has_angle, size_a, 1.0)[tensor, None]
        unit_b = basis_b / np.where(has_angle, size_b, 1.0)[tensor, None]
        gaps = np.where(has_angle, _norms_of_runs(grams, unit_a - unit_b, firsts), 0.0)
        angles = [2.0 * math.asin(min(gap / 2.0, 1.0)) for gap in gaps.tolist()]
        pairs = [
            slerp_weights(t if start < split else 1.0 - t, angles[i])
            for start, i in zip(starts.tolist(), tensor.tolist(), strict=True)
        ]
        u, v = np.array(pairs).T
        return _compact(breaks, rows_a * u[:, None] + rows_b * v[:, None])

    def simplify(self, segments: Segments, max_segments: int) -> Segments:
        """Return segments with the faintest breaks joined until at most `max_segments` are left.

        A break is faint when giving the cheaper of its neighbours the other's coefficients
        moves the model little. Joined segments get the mean of their coefficients, by length.
        """
        n_extra = len(segments.coefficients) - max_segments
        if n_extra <= 0:
            return segments
        basis = self._basis(segments.coefficients)
        grams = self._grams(segments.breaks, 0, None)
        jumps = basis[1:] - basis[:-1]
        squares = jumps[:, :, None] * jumps[:, None, :]
        moved_left = (squares * grams[:-1]).sum(axis=(1, 2))
        moved_right = (squares * grams[1:]).sum(axis=(1, 2))
        faintest = np.argsort(np.minimum(moved_left, moved_right), kind="stable")[:n_extra]
        keep = np.ones(len(segments.coefficients), dtype=bool)
        keep[faintest + 1] = False
        starts = np.flatnonzero(keep)
        lengths = np.diff(segments.breaks).astype(np.float64)
        sums = np.add.reduceat(segments.coefficients * lengths[:, None], starts, axis=0)
        means = sums / np.add.reduceat(lengths, starts)[:, None]
        return Segments(np.append(segments.breaks[:-1][keep], segments.breaks[-1]), means)

    def segments(self, recipe: Recipe) -> Segments | None:
        """Return a recipe as segments, or None when it is not a raw linear recipe of this span."""
        raw = recipe.operator == "linear" and recipe.settings.get("normalize") is False
        if not raw or recipe.sources != self.sources or set(recipe.params) != {"weights"}:
            return None
        weights = recipe.params["weights"]
        if recipe.grouping == SEGMENTS and recipe.breaks is not None:
            return Segments(recipe.breaks, weights)
        if recipe.grouping == "global":
            return Segments(np.array([0, self.n_elements]), weights)
        return None

    def recipe(self, segments: Segments) -> Recipe:
        """Return the raw linear recipe that computes `segments`."""
        return Recipe(
            "linear",
            self.sources,
            {"weights": segments.coefficients},
            SEGMENTS,
            segments.breaks,
            {"normalize": False},
        )


def slerp_weights(t: float, angle: float) -> tuple[float, float]:
    """Return (u, v) such that slerp_t(x, y) = u x + v y; plain lerp when sin(angle) <= 1e-6.

    Source: Shoemake 1985; threshold as in the M2N2 reference code.
    """
    sine = math.sin(angle)
    if sine <= 1e-6:
        return 1.0 - t, t
    return math.sin((1.0 - t) * angle) / sine, math.sin(t * angle) / sine


def on_common_breaks(a: Segments, b: Segments, *extra: int) -> tuple[Segments, Segments]:
    """Return a and b, unchanged in value, on the same breaks, `extra` among them.

    Worth doing before several calls of `LinearSpan.angle` and `split_crossover` with one pair.
    """
    breaks, rows_a, rows_b = _refine(a, b, *extra)
    return Segments(breaks, rows_a), Segments(breaks, rows_b)


def split_crossover(
    a: Segments,
    b: Segments,
    split: int,
    left: tuple[float, float],
    right: tuple[float, float],
) -> Segments:
    """Return left[0] a + left[1] b before element `split`, right[0] a + right[1] b after it."""
    breaks, rows_a, rows_b = _refine(a, b, split)
    n_left = int(breaks[:-1].searchsorted(split))
    child, part = np.empty_like(rows_a), np.empty_like(rows_b)
    for rows, (u, v) in ((slice(n_left), left), (slice(n_left, None), right)):
        np.multiply(rows_a[rows], u, out=child[rows])
        np.multiply(rows_b[rows], v, out=part[rows])
    child += part
    return _compact(breaks, child)


def _refine(a: Segments, b: Segments, *extra: int) -> tuple[IntArray, FloatArray, FloatArray]:
    """Return the union of all breaks, and both coefficient matrices on it."""
    end = a.breaks[-1]
    if a.breaks is b.breaks and all(_has_break(a.breaks, point) for point in extra):
        return a.breaks, a.coefficients, b.coefficients
    inside = [point for point in extra if 0 < point < end]
    merged = np.concatenate((a.breaks, b.breaks, np.array(inside, dtype=np.int64)))
    merged.sort(kind="stable")
    is_first = np.ones(len(merged), dtype=bool)
    np.not_equal(merged[1:], merged[:-1], out=is_first[1:])
    breaks: IntArray = merged[is_first]
    starts = breaks[:-1]
    rows_a = a.coefficients.take(a.breaks.searchsorted(starts, side="right") - 1, axis=0)
    rows_b = b.coefficients.take(b.breaks.searchsorted(starts, side="right") - 1, axis=0)
    return breaks, rows_a, rows_b


def _has_break(breaks: IntArray, point: int) -> bool:
    """Return whether a split at `point` needs no further break."""
    if point <= 0 or point >= breaks[-1]:
        return True
    return bool(breaks[breaks.searchsorted(point)] == point)


def _norms(grams: FloatArray, basis: FloatArray) -> list[float]:
    """Return the norms of (n, S, K) coefficients over the basis, given (S, K, K) Gram matrices.

    Products and plain sums, not einsum or BLAS: those round differently on other CPUs, and a
    journal should replay on all of them.
    """
    products = basis[..., :, None] * basis[..., None, :]
    products *= grams
    squares = np.add.reduce(products.reshape(len(basis), -1), axis=1)
    return [math.sqrt(max(square, 0.0)) for square in squares.tolist()]


def _norms_of_runs(grams: FloatArray, basis: FloatArray, firsts: IntArray) -> FloatArray:
    """Return (T,) norms of (S, K) coefficients over runs of segments, given (S, K, K) Grams."""
    products = basis[:, :, None] * basis[:, None, :]
    products *= grams
    squares = np.add.reduce(products.reshape(len(basis), -1), axis=1)
    norms: FloatArray = np.sqrt(np.add.reduceat(squares, firsts).clip(min=0.0))
    return norms


def _compact(breaks: IntArray, coefficients: FloatArray) -> Segments:
    """Join neighbouring segments with equal coefficients."""
    keep = np.ones(len(coefficients), dtype=bool)
    np.logical_or.reduce(coefficients[1:] != coefficients[:-1], axis=1, out=keep[1:])
    if keep.all():
        return Segments(breaks, coefficients)
    starts = breaks[:-1][keep]
    return Segments(np.append(starts, breaks[-1]), coefficients[keep])
