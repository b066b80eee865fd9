"""Basis refresh: search coefficients over a basis, then make the elites the next basis."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evomerge.algorithms.algorithm import search_algorithm
from evomerge.algorithms.generations import GenerationAlgorithm, Point, require_within
from evomerge.core.arrays import FloatArray
from evomerge.core.corners import corners, origin

# Below this spread of the winners in one coefficient, proposals would repeat each other.
SMALLEST_SPREAD = 0.1


@search_algorithm("basis_refresh")
@dataclass(kw_only=True)
class BasisRefresh(GenerationAlgorithm):
    """Rounds of search in [-1, 1]^N over N task vectors, refreshed with each round's best N.

    A round begins with 2 N points: the mean of the basis, each basis vector, and uniform ones. Then
    `iterations` times the best 2 N of the round are pushed to where its winners are, the best
    `winners` share, by `transport` and noise. The best N points of the round are the next basis.
    Since merging is linear, a refreshed basis is only a change of coordinates: recipes stay
    coefficients over the models, exact for `linear` and `task_arithmetic`, and no merged model is
    ever stored. Elites that resemble each other span less than the models did.

    Source: the outer loop of EvoGM, arXiv:2605.29295; spec: algorithms.md §10.
    Differs from it: instead of two five-layer networks trained on losers and winners with a cycle
    loss, an affine map per coefficient carries the losers' mean and spread to the winners'. It
    reaches the same aim (the winners' mean) and is undone by its inverse, so there is no cycle loss
    left to train; it cannot bend, and soon repeats itself, so noise stands in for networks that
    are trained from new random weights in each iteration. Basis vectors that were scored are not
    scored again. Rounds go on until the budget is spent (there: 2). Task vectors start at the
    base, or at the mean of the models where the base has a weight of its own. Points are clipped
    to the searched ranges.

    Attributes:
        iterations: T, pushes per round.
        winners: Share of a round's points that count as winners.
        noise: Standard deviation of what is added to a pushed coefficient, in spreads of the
            winners.
    """

    iterations: int = 3
    winners: float = 0.3
    noise: float = 1.0

    def __post_init__(self) -> None:
        """Refuse values that cannot work.

        Raises:
            ConfigError: A field is out of range.
        """
        require_within("iterations", self.iterations, 1)
        require_within("winners", self.winners, 1e-9, 0.9)
        require_within("noise", self.noise, 0.0)

    def _begin(self) -> None:
        self._origin = origin(self._space)
        self._basis = [Point(vector, "model") for vector in corners(self._space)]
        self._asked: FloatArray = np.zeros((0, len(self._basis)))  # coefficients of the batch
        self._history: list[tuple[FloatArray, Point]] = []  # scored in this round
        self._pushes = 0

    def _next_batch(self, done: list[Point]) -> list[Point]:
        scored = zip(self._asked, done, strict=True)
        self._history += [(row, point) for row, point in scored if point.value is not None]
        self._history.sort(key=lambda item: -item[1].fitness)
        size = len(self._basis)
        if not done or len(self._history) < 4:  # too few to tell winners from losers
            return self._open_round()
        if self._pushes == self.iterations:
            elites = [point for _, point in self._history]
            self._basis = _distinct([*elites, *self._basis], size)
            return self._open_round()
        self._pushes += 1
        rows = np.stack([row for row, _ in self._history])
        n_winners = max(2, round(self.winners * len(rows)))
        winners, losers = rows[:n_winners], rows[n_winners:]
        pushed = transport(rows[: 2 * size], winners, losers)
        pushed += self.noise * spread(winners) * self._rng.standard_normal(pushed.shape)
        self._asked = pushed.clip(-1.0, 1.0)
        return [self._at(row, "push") for row in self._asked]

    def _open_round(self) -> list[Point]:
        size = len(self._basis)
        uniform = self._rng.uniform(-1.0, 1.0, size=(size - 1, size))
        self._asked = np.vstack([np.full(size, 1.0 / size), np.eye(size), uniform])
        self._history, self._pushes = [], 0
        basis = [
            point if point.value is not None else self._known_or(point.vector, "basis")
            for point in self._basis
        ]
        rest = [self._at(row, "uniform") for row in uniform]
        return [self._at(self._asked[0], "mean"), *basis, *rest]

    def _at(self, row: FloatArray, how: str) -> Point:
        vectors = np.stack([point.vector for point in self._basis])
        return self._point(self._origin + row @ (vectors - self._origin), how)


def transport(points: FloatArray, winners: FloatArray, losers: FloatArray) -> FloatArray:
    """Return points carried by the affine map that takes the losers' moments to the winners'.

    Per coefficient m+ + (s+ / s-) (x - m-), with means m, the losers' standard deviation s- and the
    winners' `spread` s+; the quotient is 0 where the losers agree.

    Args:
        points: (n, N) to carry.
        winners: (W, N).
        losers: (L, N).
    """
    width = losers.std(axis=0)
    ratio = np.divide(spread(winners), width, out=np.zeros_like(width), where=width > 0.0)
    carried: FloatArray = winners.mean(axis=0) + ratio * (points - losers.mean(axis=0))
    return carried


def spread(winners: FloatArray) -> FloatArray:
    """Return (N,) standard deviations of (W, N) points, at least `SMALLEST_SPREAD`."""
    widths: FloatArray = np.maximum(winners.std(axis=0), SMALLEST_SPREAD)
    return widths


def _distinct(points: list[Point], n: int) -> list[Point]:
    """Return the first n points at different places; fewer only if there are not so many."""
    found: dict[bytes, Point] = {}
    for point in points:
        found.setdefault(point.vector.tobytes(), point)
    return list(found.values())[:n]
