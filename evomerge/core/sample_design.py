"""Where to score first so that a quadratic can be fitted: single parents, centre, evenly spread.

Shapes: n points, D dimensions, all points in the unit cube.
"""

from __future__ import annotations

import numpy as np

from evomerge.core.arrays import FloatArray
from evomerge.core.choice_space import ChoiceSpace, Space
from evomerge.core.search_space import SearchSpace, Stretch

_TRIES = 40  # latin squares drawn; the one with the largest gap wins
NEAR = 1e-6  # points closer than this are the same


def single_parents(space: Space) -> FloatArray:
    """Return (W, D) one-hot points: one model at weight 1, the others at 0, in every group.

    Empty for a space without a parameter per source; see `with_weights`.
    """
    width = next((item.param.width for item in space.layout if item.param.per_source), 0)
    return with_weights(space, np.eye(width)) if width else np.zeros((0, space.dimension))


def with_weights(space: Space, weights: FloatArray) -> FloatArray:
    """Return (n, D) points with (n, W) weights of the models, the same in every group.

    The weights are the first parameter per source, moved into its range; other parameters have
    their initial values. Where the method is searched too, points choose the first with weights.

    Raises:
        ValueError: The space has no parameter with W values per group.
    """
    width = weights.shape[1]
    if isinstance(space, ChoiceSpace):
        has_weights = [_weights_of(branch, width) is not None for branch in space.branches]
        chosen = int(np.argmax(has_weights))
        return space.place(chosen, with_weights(space.branches[chosen], weights))
    stretch = _weights_of(space, width)
    if stretch is None:
        raise ValueError(f"no parameter with {width} values per group")
    item = stretch.param
    points = np.tile(space.initial(), (len(weights), 1))
    rows = np.tile(weights, (1, stretch.rows))
    points[:, stretch.slice] = (rows - item.low) / (item.high - item.low)
    return np.clip(points, 0.0, 1.0)


def _weights_of(space: SearchSpace, width: int) -> Stretch | None:
    found = (item for item in space.layout if item.param.per_source and item.param.width == width)
    return next(found, None)


def design(space: Space, n: int, known: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Return (m, D) points to score so that, with the `known` ones, there are `n`.

    The single parents and the initial values that are not known yet, then a latin square over
    the whole cube, borders included: the best of several by the smallest distance between any two
    points. m may be 0.

    Args:
        space: What the points belong to.
        n: Wanted number of points, known ones included.
        known: (k, D) points that are scored anyway.
        rng: Source of all randomness.

    Source: design of MAP's samples (algorithms.md §4). Differs: founders count, and the rest is
    spread by a maximin latin square (Morris & Mitchell 1995) instead of a thinned grid.
    """
    chosen = list(known)
    fixed: list[FloatArray] = []
    for point in [*single_parents(space), space.initial()]:
        if len(chosen) < n and not _is_near(point, chosen):
            chosen.append(point)
            fixed.append(point)
    missing = n - len(chosen)
    empty = np.zeros((0, space.dimension))
    anchors = np.array(chosen).reshape(-1, space.dimension)
    spread = latin_square(missing, anchors, rng) if missing > 0 else empty
    return np.concatenate([np.array(fixed).reshape(-1, space.dimension), spread])


def latin_square(n: int, anchors: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Return (n, D) points whose coordinates are each a permutation of n even levels in [0, 1].

    Args:
        n: At least 1; one point alone is uniform.
        anchors: (k, D) points to keep away from.
        rng: Source of all randomness.
    """
    d = anchors.shape[1]
    if n == 1:
        return rng.random((1, d))
    levels = np.linspace(0.0, 1.0, n)
    best, best_gap = np.zeros((n, d)), -1.0
    for _ in range(_TRIES):
        points = np.stack([levels[rng.permutation(n)] for _ in range(d)], axis=1)
        gap = _gap(points, anchors)
        if gap > best_gap + 1e-9:  # levels repeat, so that gaps tie but for rounding
            best, best_gap = points, gap
    return best


def _is_near(point: FloatArray, others: list[FloatArray]) -> bool:
    return any(float(np.abs(point - other).max()) < NEAR for other in others)


def _gap(points: FloatArray, anchors: FloatArray) -> float:
    """Return the smallest squared distance between two points, or a point and an anchor."""
    everything = np.concatenate([points, anchors])
    squares = (everything**2).sum(axis=1)
    away = squares[: len(points), None] + squares - 2.0 * points @ everything.T
    away[np.arange(len(points)), np.arange(len(points))] = np.inf
    return float(away.min())
