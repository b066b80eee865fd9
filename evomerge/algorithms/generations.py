"""What algorithms share that propose a batch of points and wait for all of their scores.

A batch is handed out one point at a time, and told in any order. Its points keep the order of the
asks, so the next batch depends on the scores and not on who finished first. While the last points
of a batch are out, `ask` returns None and workers may idle.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from evomerge.algorithms.algorithm import config_name, require_dimensions
from evomerge.algorithms.pending import Pending
from evomerge.core.arrays import FloatArray
from evomerge.core.candidate import Evaluation, Proposal
from evomerge.core.choice_space import Space
from evomerge.core.objective import Objectives, mixture
from evomerge.errors import ConfigError


@dataclass(eq=False)
class Point:
    """A point of the search space, and what came of scoring it.

    Attributes:
        vector: (D,) in [0, 1].
        origin: How it came about, for people.
        parents: Ids of the candidates it was bred from.
        value: Weighted mean of the objectives, higher is better; None before it is told, and
            for ever when scoring failed.
        id: Id of the scored candidate; -1 until then.
    """

    vector: FloatArray
    origin: str
    parents: tuple[int, ...] = ()
    value: float | None = None
    id: int = -1

    @property
    def fitness(self) -> float:
        """The value; minus infinity without one."""
        return -np.inf if self.value is None else self.value


def best_of(points: list[Point]) -> Point:
    """Return the point with the highest value, the first among equals."""
    return max(points, key=lambda point: point.fitness)


@dataclass(kw_only=True)
class GenerationAlgorithm:
    """Base of the algorithms that go batch by batch; a subclass fills in `_next_batch`.

    Several objectives are reduced to their weighted mean. Founders that the search space can
    express are collected as they come; a subclass decides what to make of them.

    Attributes:
        weights: Objective -> weight in the mean; None weighs all alike, objectives left out
            count for nothing.
    """

    weights: Mapping[str, float] | None = None

    def start(self, space: Space, objectives: Objectives, rng: np.random.Generator) -> None:
        """Begin a run.

        Raises:
            ConfigError: Nothing is searched, or a weight names no objective.
        """
        require_dimensions(space, config_name(self))
        self._space, self._objectives, self._rng = space, objectives, rng
        self._mixture = mixture(self.weights, objectives, "algorithm.weights")
        self._founders: list[Point] = []
        self._known: dict[bytes, Point] = {}  # scored points, by vector
        self._batch: list[Point] = []
        self._queue: deque[Point] = deque()
        self._pending: Pending[Point] = Pending()
        self._begin()

    def _begin(self) -> None:
        """Set up the subclass's own state."""

    def _next_batch(self, done: list[Point]) -> list[Point]:
        """Return the points to score next; those that have a value already are not asked for.

        Args:
            done: The batch before, in order of the asks; empty at first.
        """
        raise NotImplementedError

    def ask(self) -> Proposal | None:
        """Return the next point of the batch, or None until the batch has been told."""
        while not self._queue:
            if len(self._pending):
                return None
            self._batch = self._next_batch(self._batch)
            self._queue.extend(point for point in self._batch if point.value is None)
        point = self._queue.popleft()
        recipe = self._space.decode(point.vector)
        self._pending.put(recipe, point)
        return Proposal(recipe, point.parents, point.origin)

    def tell(self, evaluation: Evaluation) -> None:
        """Note a value; failures leave the point without one."""
        candidate = evaluation.candidate
        point = self._pending.pop(candidate.recipe)
        if evaluation.error is not None:
            return
        if point is None:
            vector = self._space.encode(candidate.recipe)
            if vector is None:
                return
            point = Point(vector, candidate.origin)
            self._founders.append(point)
        point.value = float(self._mixture @ self._objectives.values(evaluation))
        point.id = candidate.id
        self._known.setdefault(point.vector.tobytes(), point)

    def _point(self, vector: FloatArray, origin: str, *parents: Point) -> Point:
        """Return a point to score, clipped to the search space."""
        ids = tuple(parent.id for parent in parents)
        return Point(np.clip(vector, 0.0, 1.0), origin, ids)

    def _known_or(self, vector: FloatArray, origin: str) -> Point:
        """Return the point, perhaps a founder, scored at this very vector, or one to score."""
        point = self._point(vector, origin)
        return self._known.get(point.vector.tobytes(), point)


def require_within(name: str, value: float, low: float, high: float = np.inf) -> None:
    """Refuse a config field that is not a number in [low, high].

    Raises:
        ConfigError: Names the field.
    """
    if not low <= value <= high or not np.isfinite(value):
        limit = f"at least {low:g}" if high == np.inf else f"in [{low:g}, {high:g}]"
        raise ConfigError(f"algorithm.{name} is {value}, must be {limit}")
