"""PSO-Merging: a classic particle swarm that starts at the base and the models."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evomerge.algorithms.algorithm import search_algorithm
from evomerge.algorithms.generations import Point, require_within
from evomerge.algorithms.genome import random_pairs
from evomerge.algorithms.swarm import SwarmAlgorithm, inertial_velocity
from evomerge.core.corners import corners, origin, param_slices

SPARSE_DENSITY = 0.2  # the authors drop 80 % of a task vector, and rescale the rest


@search_algorithm("pso_merging")
@dataclass(kw_only=True)
class PsoMerging(SwarmAlgorithm):
    """2 N + 1 particles with inertia, drawn to their own best and to the swarm's best.

    They start at rest: at the base, at the N models, and at N sparsified models.

    Source: arXiv:2508.19839; spec: algorithms.md §7.
    Differs from the paper: positions are coefficients, clipped to the searched ranges. Sparsified
    models exist where the merge method searches `density` (`dare_linear`): weight 1 for one model
    at density 0.2, the others at the largest density. In other spaces random mixtures of two models
    take their place, as DARE leaves the expected weights alone. Where the base has a weight of its
    own it is one of the models, and the mean of all takes the base's place. After `moves` moves a
    new swarm starts, drawn to the best of all before it too, where the paper ends after 5
    (language models) or 50 (T5): only the budget ends a run.

    Attributes:
        inertia: w, what is left of the velocity.
        cognitive: c1, largest pull of the particle's own best.
        social: c2, largest pull of the swarm's best.
        moves: S, moves of one swarm; by about 20 the particles have met.
    """

    inertia: float = 0.2
    cognitive: float = 2.0
    social: float = 2.0
    moves: int = 20

    def __post_init__(self) -> None:
        """Refuse values that cannot work.

        Raises:
            ConfigError: A field is out of range, or no particle would move.
        """
        require_within("inertia", self.inertia, 0.0, 1.0)
        require_within("cognitive", self.cognitive, 0.0)
        # Without it the particles start at rest, at their own best, and never move.
        require_within("social", self.social, 1e-9)
        require_within("moves", self.moves, 1)

    def _first_positions(self) -> list[Point]:
        self._moves_made = 0
        models = corners(self._space)
        stretch = param_slices(self._space).get("density")
        start = np.vstack([origin(self._space), models])
        if stretch is not None:
            start[:, stretch] = 1.0
        points = [self._known_or(vector, "model") for vector in start]
        if stretch is None:
            return points + random_pairs(models, len(models), self._rng)
        item = next(item.param for item in self._space.layout if item.param.name == "density")
        unit = (SPARSE_DENSITY - item.low) / (item.high - item.low)
        for vector in start[1:]:
            sparse = vector.copy()
            sparse[stretch] = unit
            points.append(self._known_or(sparse, "sparsified model"))
        return points

    def _moves(self) -> list[Point]:
        assert self._best is not None
        if self._moves_made == self.moves:
            return []
        self._moves_made += 1
        points: list[Point] = []
        for particle in self._particles:
            particle.velocity = inertial_velocity(
                particle,
                self._best.vector,
                inertia=self.inertia,
                cognitive=self.cognitive,
                social=self.social,
                draws=self._rng.random(2),
            )
            x = particle.position
            points.append(self._point(x.vector + particle.velocity, "move", x))
        return points
