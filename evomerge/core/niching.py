"""Natural niches: share every example among its solvers, and mate complements.

Pure functions of a score matrix; the archive that uses them is `algorithms.niche_search`.
Rows must hold scores on identical examples. Shape letters: P members, N examples.

With capacity c_j and z_j = sum_k s_kj, a member's fitness is sum_j c_j s_ij / z_j**alpha and
its attraction to B is sum_j c_j / z_j max(0, s_Bj - s_Aj); where nobody scores, z_j counts as 1.

Source: Abrantes et al. 2025 (M2N2), arXiv:2508.16204, and the reference code natural_niches.
Differs from the reference code: one zero guard in both selection steps; real-valued and
negative scores are allowed; draws with all weights zero are uniform instead of NaN.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from evomerge.core.arrays import FloatArray

Capacity = Literal["auto", "one"]
"""c_j: "auto" is the best score of any member, which is 1 for solved 0/1 examples; or 1."""


def lift(scores: FloatArray) -> FloatArray:
    """Return (P, N) scores, columns with a negative score shifted so that their minimum is 0.

    Log-likelihoods are never positive, and shares of a negative sum mean nothing. Shifting by
    the worst of the members compared makes a column count only for what they differ by.
    """
    low = scores.min(axis=0)
    if (low >= 0.0).all():
        return scores
    shifted: FloatArray = scores - np.minimum(low, 0.0)
    return shifted


def example_values(scores: FloatArray, alpha: float, capacity: Capacity) -> FloatArray:
    """Return (N,) worth of one unit of score on each example, c_j / z_j**alpha.

    Args:
        scores: (P, N) non-negative, higher is better.
        alpha: Sharing strength; 0 gives plain sums (times the capacity), 1 full sharing.
        capacity: See `Capacity`.
    """
    return worth(scores.sum(axis=0), scores.max(axis=0), alpha, capacity)


def worth(crowd: FloatArray, best: FloatArray, alpha: float, capacity: Capacity) -> FloatArray:
    """Return `example_values` of members that are known by their sums and maxima alone.

    Args:
        crowd: (N,) sum of the members' scores.
        best: (N,) highest score of any member.
        alpha: See `example_values`.
        capacity: See `Capacity`.
    """
    crowd = crowd**alpha if alpha != 1.0 else crowd
    crowd = np.where(crowd == 0.0, 1.0, crowd)
    values: FloatArray = (best if capacity == "auto" else 1.0) / crowd
    return values


def shared_fitness(scores: FloatArray, alpha: float, capacity: Capacity = "auto") -> FloatArray:
    """Return each member's reward after sharing every example among its solvers.

    Args:
        scores: (P, N) non-negative, higher is better.
        alpha: Sharing strength; 0 gives plain accuracy for 0/1 scores.
        capacity: See `Capacity`.

    Returns:
        (P,) fitness, in units of examples.

    Raises:
        ValueError: A score is negative or not finite.
    """
    _check(scores)
    return weighted_sums(scores, example_values(scores, alpha, capacity))


def attraction(scores: FloatArray, member: int, capacity: Capacity = "auto") -> FloatArray:
    """Return how much every member offers that `member` lacks, valued by scarcity.

    Args:
        scores: (P, N) non-negative, higher is better.
        member: Row of the first parent.
        capacity: See `Capacity`.

    Returns:
        (P,) attraction, 0 at `member` itself.

    Raises:
        ValueError: A score is negative or not finite.
    """
    _check(scores)
    gains = np.maximum(scores - scores[member], 0.0)
    return weighted_sums(gains, example_values(scores, 1.0, capacity))


def weighted_sums(
    rows: FloatArray, values: FloatArray, scratch: FloatArray | None = None
) -> FloatArray:
    """Return (P,) sums of (P, N) rows times (N,) values; equal rows have exactly equal sums.

    Not a matrix product: BLAS may round equal rows differently, which would break the rule
    that a newcomer wins ties.

    Args:
        rows: (P, N).
        values: (N,).
        scratch: (P, N) that may be overwritten, so that none is allocated; may be `rows`.
    """
    sums: FloatArray = np.multiply(rows, values, out=scratch).sum(axis=1)
    return sums


def roulette(weights: FloatArray, rng: np.random.Generator, exclude: int | None = None) -> int:
    """Return an index drawn in proportion to (P,) weights, never `exclude`.

    Draws exactly one number from `rng`; see `index_at`.
    """
    return index_at(rng.random(), weights, exclude)


def index_at(draw: float, weights: FloatArray, exclude: int | None = None) -> int:
    """Return the index that a draw from [0, 1) picks in proportion to (P,) weights.

    Never `exclude`; uniform over the others when the weights are all zero.
    """
    if exclude is not None:
        weights = weights.copy()
        weights[exclude] = 0.0
    edges = weights.cumsum()
    total = edges[-1]
    if total > 0.0:
        # Index of the first edge above the draw; rounding may push the draw to the total.
        index = int(edges.searchsorted(draw * total, side="right"))
        return index if index < len(edges) else int(np.flatnonzero(weights)[-1])
    if exclude is None:
        return int(draw * len(weights))
    index = int(draw * (len(weights) - 1))
    return index + (index >= exclude)


def sure_index_at(draw: float, edges: FloatArray, tolerance: float) -> int | None:
    """Return `index_at` of weights known to a relative error; None where it might be another.

    Args:
        draw: From [0, 1).
        edges: (P,) cumulative sums of non-negative weights.
        tolerance: Largest error of any sum of weights, as a share of the sum of all.
    """
    target = draw * edges[-1]
    if np.abs(edges - target).min() <= 2.0 * tolerance * edges[-1]:  # of the edge, and the target
        return None
    return int(edges.searchsorted(target, side="right"))


def _check(scores: FloatArray) -> None:
    if not np.isfinite(scores).all() or (scores < 0.0).any():
        raise ValueError("scores must be finite and not negative; see `lift`")
