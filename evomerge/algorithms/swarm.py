"""Particle swarms over mixtures of the models: particles, velocities, and the loop they share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evomerge.algorithms.generations import GenerationAlgorithm, Point
from evomerge.core.arrays import FloatArray


@dataclass(eq=False)
class Particle:
    """A member of a swarm.

    Attributes:
        position: Where it is, and the value there (None while that failed).
        velocity: (D,) what is added to the position, times the step.
        best: The best position it has had.
        stale: Moves since then.
    """

    position: Point
    velocity: FloatArray
    best: Point
    stale: int = 0

    def arrive(self, point: Point) -> None:
        """Take a new position; one that failed leaves the particle where it was."""
        self.stale += 1
        if point.value is None:
            return
        self.position = point
        if point.fitness > self.best.fitness:
            self.best, self.stale = point, 0


@dataclass(frozen=True)
class Pulls:
    """How strongly a particle follows its velocity and the best points, and flees the worst.

    Each is multiplied by a number in [0, 1) drawn anew for each particle and move; the four
    products are divided by their sum.
    """

    inertia: float
    cognitive: float
    social: float
    repel: float


def blended_velocity(
    particle: Particle, best: FloatArray, worst: FloatArray, pulls: Pulls, draws: FloatArray
) -> FloatArray:
    """Return (D,) the next velocity of a Model Swarms particle.

    [r1 i v + r2 c (p - x) + r3 s (g - x) - r4 q (w - x)] / (r1 i + r2 c + r3 s + r4 q); the old
    velocity where the divisor is 0.

    Args:
        particle: Its velocity v, position x and own best p.
        best: (D,) g, the best position of the swarm.
        worst: (D,) w, the worst.
        pulls: i, c, s, q.
        draws: (4,) r, in [0, 1).

    Source: Feng et al. 2024 (Model Swarms), arXiv:2410.11163; GENOME+ uses the same.
    """
    shares = draws * np.array([pulls.inertia, pulls.cognitive, pulls.social, pulls.repel])
    total = shares.sum()
    if total <= 0.0:
        return particle.velocity
    x = particle.position.vector
    ways = np.stack([particle.velocity, particle.best.vector - x, best - x, x - worst])
    blended: FloatArray = (shares / total) @ ways
    return blended


def inertial_velocity(
    particle: Particle,
    best: FloatArray,
    *,
    inertia: float,
    cognitive: float,
    social: float,
    draws: FloatArray,
) -> FloatArray:
    """Return (D,) inertia v + cognitive r1 (p - x) + social r2 (g - x).

    Args:
        particle: Its velocity v, position x and own best p.
        best: (D,) g, the best position of the swarm.
        inertia: w.
        cognitive: c1.
        social: c2.
        draws: (2,) r, in [0, 1).

    Source: Shi and Eberhart 1998.
    """
    x = particle.position.vector
    own, shared = cognitive * draws[0], social * draws[1]
    velocity: FloatArray = (
        inertia * particle.velocity + own * (particle.best.vector - x) + shared * (best - x)
    )
    return velocity


class SwarmAlgorithm(GenerationAlgorithm):
    """Base of the swarms: all particles are scored, then all move."""

    def _begin(self) -> None:
        self._particles: list[Particle] = []
        self._best: Point | None = None
        self._worst: Point | None = None

    def _first_positions(self) -> list[Point]:
        """Return where the particles start."""
        raise NotImplementedError

    def _first_velocity(self, position: Point, others: list[Point]) -> FloatArray:
        """Return (D,) the velocity of a particle that was just made; at rest by default."""
        del others
        return np.zeros_like(position.vector)

    def _moves(self) -> list[Point]:
        """Return the next position of every particle, or nothing to begin anew."""
        raise NotImplementedError

    def _next_batch(self, done: list[Point]) -> list[Point]:
        for particle, point in zip(self._particles, done, strict=False):
            particle.arrive(point)
        if not self._particles:
            scored = [point for point in done if point.value is not None]
            self._particles = [
                Particle(point, self._first_velocity(point, scored), point) for point in scored
            ]
        for point in [*self._founders, *done]:
            if point.value is not None:
                self._note(point)
        moves = self._moves() if self._particles else []
        if moves:
            return moves
        self._particles = []
        return self._first_positions()

    def _note(self, point: Point) -> None:
        """Keep the best and the worst position of all."""
        if self._best is None or point.fitness > self._best.fitness:
            self._best = point
        if self._worst is None or point.fitness < self._worst.fitness:
            self._worst = point
