"""NSGA-III on a function that costs next to nothing, such as a surrogate; maximises.

Shapes: n points, P members, M objectives, R reference directions, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from evomerge.core.arrays import FloatArray, IntArray
from evomerge.core.pareto import non_dominated_sort

_TINY = 1e-12

Function = Callable[[FloatArray], FloatArray]


def nsga3(
    function: Function,
    low: FloatArray,
    high: FloatArray,
    directions: FloatArray,
    rng: np.random.Generator,
    *,
    generations: int = 40,
    start: FloatArray | None = None,
) -> tuple[FloatArray, FloatArray]:
    """Return the last population, (P, D) points and their (P, M) values; P is even and >= R.

    Args:
        function: (n, D) points -> (n, M) finite values, higher is better.
        low: (D,) lower bounds; no point leaves the box.
        high: (D,) upper bounds.
        directions: (R, M) reference directions, see `core.directions`.
        rng: Source of all randomness.
        generations: How often P children are bred.
        start: (s, D) points to begin with, at most P are used; the rest is uniform.

    Source: Deb & Jain 2014, IEEE TEVC 18(4). Crossover SBX with eta 30, polynomial mutation with
    eta 20 and probability 1 / D, as there. No library: the runs are short and on arrays, and those
    at hand evaluate point by point.
    """
    size = max(4, len(directions) + len(directions) % 2)
    points = rng.uniform(low, high, (size, len(low)))
    if start is not None:
        first = np.clip(start[:size], low, high)
        points[: len(first)] = first
    values = function(points)
    niching = _Niching(directions)
    for _ in range(generations):
        parents = points[rng.permutation(size)]
        children = _mutated(_crossed(parents, low, high, rng), low, high, rng)
        points = np.concatenate([points, children])
        values = np.concatenate([values, function(children)])
        kept = niching.survivors(values, size, rng)
        points, values = points[kept], values[kept]
    return points, values


def _crossed(
    parents: FloatArray, low: FloatArray, high: FloatArray, rng: np.random.Generator
) -> FloatArray:
    """Return (P, D) children of neighbouring rows by simulated binary crossover, eta 30.

    Source: Deb & Agrawal 1995; each gene is crossed with probability one half.
    """
    a, b = parents[0::2], parents[1::2]
    u = rng.random(a.shape)
    power = 1.0 / 31.0
    spread = np.where(u <= 0.5, (2.0 * u) ** power, (0.5 / (1.0 - u)) ** power)
    spread = np.where(rng.random(a.shape) < 0.5, spread, 1.0)
    # A spread of 1 keeps both parents; which child gets which gene is a coin.
    spread = np.where(rng.random(a.shape) < 0.5, spread, -spread)
    middle, half = 0.5 * (a + b), 0.5 * (b - a)
    return np.clip(np.concatenate([middle - spread * half, middle + spread * half]), low, high)


def _mutated(
    points: FloatArray, low: FloatArray, high: FloatArray, rng: np.random.Generator
) -> FloatArray:
    """Return (P, D) points, each gene moved with probability 1 / D; polynomial, eta 20.

    Source: Deb & Goyal 1996, the form that stays inside the bounds.
    """
    width = np.maximum(high - low, _TINY)
    u = rng.random(points.shape)
    down, up = (points - low) / width, (high - points) / width
    power = 1.0 / 21.0
    left = (2.0 * u + (1.0 - 2.0 * u) * (1.0 - down) ** 21) ** power - 1.0
    right = 1.0 - (2.0 * (1.0 - u) + (2.0 * u - 1.0) * (1.0 - up) ** 21) ** power
    step = np.where(u < 0.5, left, right) * width
    moved = rng.random(points.shape) < 1.0 / points.shape[1]
    return np.clip(np.where(moved, points + step, points), low, high)


class _Niching:
    """Survival by rank, then by how empty the neighbourhood of a direction is."""

    def __init__(self, directions: FloatArray) -> None:
        self._directions = directions / np.linalg.norm(directions, axis=1, keepdims=True)
        self._ideal = np.full(directions.shape[1], -np.inf)

    def survivors(self, values: FloatArray, n: int, rng: np.random.Generator) -> IntArray:
        """Return (n,) rows of (P, M) values that stay."""
        self._ideal = np.maximum(self._ideal, values.max(axis=0))
        ranks = non_dominated_sort(values)
        sizes = np.cumsum(np.bincount(ranks))
        last = int(np.searchsorted(sizes, n))
        kept = np.flatnonzero(ranks < last)
        if len(kept) == n:
            return kept
        fringe = np.flatnonzero(ranks == last)
        both = np.concatenate([kept, fringe])
        loss = self._ideal - values[both]
        unit = loss / _intercepts(loss, ranks[both] == 0)
        along = unit @ self._directions.T
        apart = np.sqrt(np.maximum((unit**2).sum(axis=1)[:, None] - along**2, 0.0))
        niche = apart.argmin(axis=1)
        distance = apart[np.arange(len(both)), niche]
        chosen = _fill(niche, distance, len(kept), n - len(kept), len(self._directions), rng)
        return np.concatenate([kept, both[chosen]])


def _intercepts(loss: FloatArray, is_first: FloatArray) -> FloatArray:
    """Return (M,) where the plane through the extreme points cuts the axes; positive.

    Falls back to the first front's worst values where there is no such plane.
    """
    n_objectives = loss.shape[1]
    axes = np.where(np.eye(n_objectives) == 1.0, 1.0, 1e6)  # achievement scalarisation
    extremes = loss[(loss[None] * axes[:, None]).max(axis=2).argmin(axis=1)]
    worst = loss[is_first].max(axis=0)
    try:
        plane = np.linalg.solve(extremes, np.ones(n_objectives))
    except np.linalg.LinAlgError:  # two axes share an extreme point
        plane = np.zeros(n_objectives)
    cut = np.divide(1.0, plane, out=np.zeros(n_objectives), where=plane > _TINY)
    usable = bool((cut > 1e-6).all() and (cut <= 10.0 * worst + _TINY).all())
    intercepts: FloatArray = np.maximum(cut if usable else worst, 1e-9)
    return intercepts


def _fill(
    niche: IntArray,
    distance: FloatArray,
    n_kept: int,
    n: int,
    n_niches: int,
    rng: np.random.Generator,
) -> IntArray:
    """Return (n,) rows at or after `n_kept`, each for the direction with the fewest members.

    An empty direction takes the nearest point, another one any of its points.
    """
    counts = np.bincount(niche[:n_kept], minlength=n_niches)
    order = rng.permutation(len(niche) - n_kept) + n_kept
    nearest_first = order[np.argsort(distance[order], kind="stable")]
    waiting: list[list[int]] = [[] for _ in range(n_niches)]
    for row in order[::-1]:
        waiting[niche[row]].append(int(row))
    closest: dict[int, int] = {}
    for row in nearest_first:
        closest.setdefault(int(niche[row]), int(row))
    tie = rng.permutation(n_niches)
    open_niches = sorted(closest, key=lambda j: (counts[j], tie[j]))
    chosen: list[int] = []
    while len(chosen) < n:
        least = min(counts[j] for j in open_niches)
        for j in [j for j in open_niches if counts[j] == least]:
            row = closest[j] if counts[j] == 0 else waiting[j][-1]
            waiting[j].remove(row)
            chosen.append(row)
            counts[j] += 1
            if len(chosen) == n:
                break
        open_niches = [j for j in open_niches if waiting[j]]
    return np.array(chosen, dtype=np.int64)
