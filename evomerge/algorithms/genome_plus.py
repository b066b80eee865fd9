"""GENOME+: the genetic algorithm of GENOME, whose members also move as a swarm."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evomerge.algorithms.algorithm import search_algorithm
from evomerge.algorithms.generations import Point, best_of, require_within
from evomerge.algorithms.genome import Genome
from evomerge.algorithms.swarm import Particle, Pulls, blended_velocity
from evomerge.core.arrays import FloatArray
from evomerge.core.selection import spin
from evomerge.errors import ConfigError


@search_algorithm("genome_plus")
@dataclass(kw_only=True)
class GenomePlus(Genome):
    """GENOME with succession, and roulette in place of tournaments.

    Each generation has two batches. In the first all members move: a velocity blended from its
    own, and from the ways to the member's best, to the best found by all and away from the worst
    member (`swarm.blended_velocity`), times a step that shrinks. In the second the moved members
    have children and mutated copies, as in `genome`.

    Source: arXiv:2503.01155; spec: algorithms.md §2.
    Differs from the authors' code, besides what `genome` says: a moved member is scored again
    (there it keeps its old score); its best is a copy (there it moves along, and pulls nowhere);
    the step shrinks once per move of all (there once per member); the four random factors are
    drawn for each member and move (there once per run); a member whose move failed stays. The vote
    of the best members is no part of a search: `evomerge export RUN --ensemble K` offers it.

    Attributes:
        population_size: N, at least 2.
        crossover_probability: That one of the N / 2 tries has a child.
        mutation_probability: That a member leaves a mutated copy.
        gene_probability: That a coefficient of that copy gets noise.
        sigma: Standard deviation of the noise, as a share of a coefficient's range.
        elites: Fittest members that always stay.
        patience: Generations without a better best member before beginning anew.
        step: Share of the velocity that is added to a member in the first move.
        step_decay: What the step is multiplied by after each move of all.
        inertia: Pull of the velocity.
        cognitive: Pull of the member's own best.
        social: Pull of the best found by all.
        repel: Push of the worst member.
    """

    mutation_probability: float = 0.3
    step: float = 0.5
    step_decay: float = 0.95
    inertia: float = 0.2
    cognitive: float = 0.2
    social: float = 0.2
    repel: float = 0.1

    def __post_init__(self) -> None:
        """Refuse values that cannot work.

        Raises:
            ConfigError: A field is out of range, or nothing would be bred or move.
        """
        super().__post_init__()
        require_within("step", self.step, 1e-9)
        require_within("step_decay", self.step_decay, 1e-9, 1.0)
        for name in ("inertia", "cognitive", "social", "repel"):
            require_within(name, getattr(self, name), 0.0)
        if self.inertia + self.cognitive + self.social + self.repel == 0.0:
            raise ConfigError(
                "algorithm: inertia, cognitive, social and repel are all 0, nothing would move; "
                "use genome"
            )

    def _begin(self) -> None:
        super()._begin()
        self._pulls = Pulls(self.inertia, self.cognitive, self.social, self.repel)
        self._step = self.step
        self._particles: dict[int, Particle] = {}  # by id of the member
        self._movers: list[Particle] = []
        self._best: Point | None = None

    def _draw(self, fitness: FloatArray, n: int) -> list[int]:
        return spin(fitness, n, self._rng)

    def _next_batch(self, done: list[Point]) -> list[Point]:
        if not self._movers:
            return super()._next_batch(done)
        for particle, point in zip(self._movers, done, strict=True):
            particle.arrive(point)
        self._members = [particle.position for particle in self._movers]
        self._particles = {particle.position.id: particle for particle in self._movers}
        self._movers = []
        return self._children()

    def _restart(self) -> list[Point]:
        self._step = self.step
        return super()._restart()

    def _next_generation(self) -> list[Point]:
        """Move every member."""
        known = [*self._members, *([] if self._best is None else [self._best])]
        known += [particle.best for particle in self._particles.values()]
        self._best = best_of(known)
        worst = min(self._members, key=lambda member: member.fitness)
        self._movers = [self._particle(member) for member in self._members]
        points: list[Point] = []
        for particle in self._movers:
            particle.velocity = blended_velocity(
                particle, self._best.vector, worst.vector, self._pulls, self._rng.random(4)
            )
            x = particle.position
            points.append(self._point(x.vector + self._step * particle.velocity, "succession", x))
        self._step *= self.step_decay
        return points

    def _particle(self, member: Point) -> Particle:
        """Return the particle of a member; a new one heads for a random other member."""
        if member.id in self._particles:
            return self._particles[member.id]
        others = [other for other in self._members if other is not member]
        if not others:
            return Particle(member, np.zeros_like(member.vector), member)
        towards = others[int(self._rng.integers(len(others)))]
        return Particle(member, towards.vector - member.vector, member)
