"""Frank-Wolfe merging without gradients: step towards the model that promises most."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evomerge.algorithms.algorithm import search_algorithm
from evomerge.algorithms.generations import (
    GenerationAlgorithm,
    Point,
    best_of,
    require_within,
)
from evomerge.core.arrays import FloatArray
from evomerge.core.corners import corners, random_mixture


@search_algorithm("frank_wolfe")
@dataclass(kw_only=True)
class FrankWolfe(GenerationAlgorithm):
    """x <- (1 - g) x + g s with g = 2 eta / (t + 2), s the model uphill from x.

    The slope towards model s is the finite difference (f(x + h (s - x)) - f(x)) / h with h the
    `probe`; since f(x) and h are the same for all, s is the model whose probe scores best. Each
    step scores x and one probe per model, all at once: K + 1 evaluations, K where x is the probe
    that won. All points are convex combinations of the start and the models.

    Starts from the initial values; starts again from a random mixture of the models after
    `iterations` steps, and when no probe beats x.

    Source: Chen et al. 2025 (FW-Merging), arXiv:2503.12649; spec: operators.md §4.1.
    Differs from the paper: the linear minimisation uses measured scores in place of gradients, so
    no weights or activations are needed; whole models are chosen, not layers; probes are scored
    candidates like any other.

    Attributes:
        iterations: Steps from one start.
        eta: Scale of the steps.
        probe: h, how far along the way to a model its promise is measured. Small ones are honest
            about the slope, large ones stand out from the noise of few examples.
    """

    iterations: int = 10
    eta: float = 0.1
    probe: float = 0.1

    def __post_init__(self) -> None:
        """Refuse values that cannot work.

        Raises:
            ConfigError: A field is out of range.
        """
        require_within("iterations", self.iterations, 1)
        require_within("eta", self.eta, 1e-9, 1.0)
        require_within("probe", self.probe, 1e-9, 1.0)

    def _begin(self) -> None:
        self._models: FloatArray = corners(self._space)
        self._steps = 0

    def _next_batch(self, done: list[Point]) -> list[Point]:
        if not done:
            return self._around(self._known_or(self._space.initial(), "start"))
        x, probes = done[0], done[1:]
        best = best_of(probes)
        is_stuck = best.fitness <= x.fitness  # also when all probes failed
        if is_stuck or self._steps == self.iterations:
            self._steps = 0
            return self._around(Point(random_mixture(self._models, self._rng), "start"))
        model = self._models[probes.index(best)]
        vector = towards(x.vector, model, step_size(self._steps, self.eta))
        self._steps += 1
        return self._around(self._known_or(vector, "step"))  # may be a probe that was scored

    def _around(self, x: Point) -> list[Point]:
        """Return x and its probes, in the order of the models."""
        probes = [Point(towards(x.vector, model, self.probe), "probe") for model in self._models]
        return [x, *probes]


def step_size(t: int, eta: float) -> float:
    """Return 2 eta / (t + 2), the share of the way in step t, from 0."""
    return 2.0 * eta / (t + 2)


def towards(x: FloatArray, model: FloatArray, share: float) -> FloatArray:
    """Return (D,) the point a share of the way from x to a model."""
    point: FloatArray = np.clip((1.0 - share) * x + share * model, 0.0, 1.0)
    return point
