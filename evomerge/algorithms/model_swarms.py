"""Model Swarms: particles that follow the best and flee the worst."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evomerge.algorithms.algorithm import search_algorithm
from evomerge.algorithms.generations import Point, require_within
from evomerge.algorithms.swarm import Particle, Pulls, SwarmAlgorithm, blended_velocity
from evomerge.core.arrays import FloatArray
from evomerge.core.corners import corners
from evomerge.errors import ConfigError


@search_algorithm("model_swarms")
@dataclass(kw_only=True)
class ModelSwarms(SwarmAlgorithm):
    """Particle swarm search with a repelling worst point and a shrinking step.

    Particles start at the models, and at random lines through two of them, half between and half
    beyond. Each begins with the velocity towards another particle; `swarm.blended_velocity` says
    how it turns. A particle that has found nothing better for `restart_patience` moves goes back to
    its best and stands still for a moment. Founders that the space can express count for the
    swarm's best and worst.

    Source: Feng et al. 2024, arXiv:2410.11163, with the defaults of the authors' code.
    Differs from it: positions are coefficients, clipped to the searched ranges; a failed move is
    not made; after `patience` moves without a better best the swarm is made anew, where the code
    stops, since only the budget ends a run.

    Attributes:
        population_size: Particles; more where there are more models.
        inertia: Pull of the velocity.
        cognitive: Pull of the particle's own best.
        social: Pull of the swarm's best.
        repel: Push of the swarm's worst.
        step: Share of the velocity that is added to a position in the first move.
        step_decay: What the step is multiplied by after each move of the swarm.
        smallest_step: Below this the step does not fall.
        patience: Moves of the swarm without a better best before beginning anew.
        restart_patience: Moves of a particle before it returns to its best.
    """

    population_size: int = 10
    inertia: float = 0.4
    cognitive: float = 0.3
    social: float = 0.3
    repel: float = 0.3
    step: float = 1.0
    step_decay: float = 0.95
    smallest_step: float = 0.1
    patience: int = 10
    restart_patience: int = 5

    def __post_init__(self) -> None:
        """Refuse values that cannot work.

        Raises:
            ConfigError: A field is out of range, or no particle would move.
        """
        require_within("population_size", self.population_size, 2)
        for name in ("inertia", "cognitive", "social", "repel"):
            require_within(name, getattr(self, name), 0.0)
        if self.inertia + self.cognitive + self.social + self.repel == 0.0:
            raise ConfigError(
                "algorithm: inertia, cognitive, social and repel are all 0, nothing would move"
            )
        require_within("step", self.step, 1e-9)
        require_within("step_decay", self.step_decay, 1e-9, 1.0)
        require_within("smallest_step", self.smallest_step, 0.0, self.step)
        require_within("patience", self.patience, 1)
        require_within("restart_patience", self.restart_patience, 1)

    def _begin(self) -> None:
        super()._begin()
        self._pulls = Pulls(self.inertia, self.cognitive, self.social, self.repel)

    def _first_positions(self) -> list[Point]:
        self._step = self.step
        self._record = -np.inf
        self._stale = 0
        models = corners(self._space)
        points = [self._known_or(model, "model") for model in models]
        while len(points) < self.population_size:
            a, b = self._rng.permutation(len(models))[:2]
            share = 2.0 * self._rng.random()
            points.append(
                self._point(share * models[a] + (1.0 - share) * models[b], "line through two")
            )
        return points

    def _first_velocity(self, position: Point, others: list[Point]) -> FloatArray:
        rest = [other for other in others if other is not position]
        if not rest:
            return np.zeros_like(position.vector)
        return rest[int(self._rng.integers(len(rest)))].vector - position.vector

    def _moves(self) -> list[Point]:
        assert self._best is not None
        assert self._worst is not None
        found = max(particle.best.fitness for particle in self._particles)
        self._stale = 0 if found > self._record else self._stale + 1
        self._record = max(found, self._record)
        if self._stale >= self.patience:
            return []
        points: list[Point] = []
        for particle in self._particles:
            if particle.stale >= self.restart_patience:
                _go_back(particle)
            particle.velocity = blended_velocity(
                particle,
                self._best.vector,
                self._worst.vector,
                self._pulls,
                self._rng.random(4),
            )
            x = particle.position
            points.append(self._point(x.vector + self._step * particle.velocity, "move", x))
        self._step = max(self._step * self.step_decay, self.smallest_step)
        return points


def _go_back(particle: Particle) -> None:
    particle.position = particle.best
    particle.velocity = np.zeros_like(particle.velocity)
    particle.stale = 0
