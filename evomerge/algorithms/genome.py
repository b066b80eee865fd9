"""GENOME: a genetic algorithm over mixtures of the models."""

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
from evomerge.core.corners import corners
from evomerge.core.selection import elites, spin, tournament
from evomerge.errors import ConfigError

TOURNAMENT_SIZE = 3
RETRIES = 8  # redraws of parents whose child was proposed before, then it is proposed again


@search_algorithm("genome")
@dataclass(kw_only=True)
class Genome(GenerationAlgorithm):
    """Crossover in proportion to fitness, mutated copies, tournament selection.

    The first generation mixes random pairs of models. In each later one, N / 2 times a pair of
    parents drawn by fitness may have a child (f_a a + f_b b) / (f_a + f_b), and every member, the
    children included, may leave a copy with noise. Elites and the winners of tournaments of 3 make
    up the next population. Founders that the space can express compete as well.

    Everything happens in the coefficients. For `linear` and `task_arithmetic` that is exactly what
    the authors do to weights, mutation apart; without mutation all that can be reached are
    mixtures of the models, so compare with `cma_es` on the same coefficients.

    Source: arXiv:2503.01155; spec: algorithms.md §2.
    Differs from the authors' code: noise goes on coefficients, each mutated with
    `gene_probability`, of which there are few, hence the larger default; `elites` is a number, as
    theirs rounds a share down to none; fitness may be negative or zero (shifted; uniform draws);
    parents that had the very same child before are redrawn; stagnation begins anew from random
    pairs and the best member, since only the budget ends a run.

    Attributes:
        population_size: N, at least 2.
        crossover_probability: That one of the N / 2 tries has a child.
        mutation_probability: That a member leaves a mutated copy.
        gene_probability: That a coefficient of that copy gets noise.
        sigma: Standard deviation of the noise, as a share of a coefficient's range.
        elites: Fittest members that always stay.
        patience: Generations without a better best member before beginning anew.
    """

    population_size: int = 10
    crossover_probability: float = 0.8
    mutation_probability: float = 0.15
    gene_probability: float = 0.5
    sigma: float = 0.05
    elites: int = 1
    patience: int = 5

    def __post_init__(self) -> None:
        """Refuse values that cannot work.

        Raises:
            ConfigError: A field is out of range, or nothing would ever be bred.
        """
        require_within("population_size", self.population_size, 2)
        for name in ("crossover_probability", "mutation_probability"):
            require_within(name, getattr(self, name), 0.0, 1.0)
        require_within("gene_probability", self.gene_probability, 1e-9, 1.0)
        require_within("sigma", self.sigma, 1e-9, 1.0)
        require_within("elites", self.elites, 0, self.population_size)
        require_within("patience", self.patience, 1)
        if self.crossover_probability == 0.0 and self.mutation_probability == 0.0:
            raise ConfigError(
                "algorithm.crossover_probability and mutation_probability are both 0: the first "
                "generation would never have children"
            )

    def _begin(self) -> None:
        self._members: list[Point] = []
        self._joined = 0  # founders that have competed
        self._has_begun = False
        self._born: set[bytes] = set()  # children ever proposed
        self._record = -np.inf
        self._stale = 0  # generations without a new record

    def _next_batch(self, done: list[Point]) -> list[Point]:
        if not self._has_begun:
            self._has_begun = True
            return random_pairs(corners(self._space), self.population_size, self._rng)
        self._compete(done)
        if len(self._members) < 2 or self._stale >= self.patience:
            return self._restart()
        return self._next_generation()

    def _restart(self) -> list[Point]:
        """Begin anew with random pairs; the best member stays to compete with them."""
        self._members = self._members[:1]
        self._stale = 0
        return random_pairs(corners(self._space), self.population_size, self._rng)

    def _next_generation(self) -> list[Point]:
        """Return what to score once the population has been selected."""
        return self._children()

    def _compete(self, done: list[Point]) -> None:
        """Select the next population, best first, among members, `done` and new founders."""
        pool = [*self._members, *self._founders[self._joined :], *done]
        self._joined = len(self._founders)
        pool = [point for point in pool if point.value is not None]
        if not pool:
            return
        self._members = [pool[i] for i in self._survivors(_fitness(pool))]
        self._members.sort(key=lambda member: -member.fitness)
        best = best_of(pool).fitness
        self._stale = 0 if best > self._record else self._stale + 1
        self._record = max(self._record, best)

    def _survivors(self, fitness: FloatArray) -> list[int]:
        kept = elites(fitness, self.elites)
        others = np.setdiff1d(np.arange(len(fitness)), kept)
        n = min(self.population_size - len(kept), len(others))
        return kept + [int(others[i]) for i in self._draw(fitness[others], n)]

    def _draw(self, fitness: FloatArray, n: int) -> list[int]:
        return tournament(fitness, n, TOURNAMENT_SIZE, self._rng)

    def _children(self) -> list[Point]:
        fitness = _fitness(self._members)
        children: list[Point] = []
        for _ in range(self.population_size // 2):
            if self._rng.random() < self.crossover_probability:
                children.append(self._cross(fitness))
        copies = [
            self._mutated(point)
            for point in [*self._members, *children]
            if self._rng.random() < self.mutation_probability
        ]
        if not children and not copies:  # a generation has to score something
            by_crossover = self.crossover_probability > 0.0
            return [self._cross(fitness) if by_crossover else self._mutated(self._members[0])]
        return children + copies

    def _cross(self, fitness: FloatArray) -> Point:
        """Return a child, of other parents when those had this very child before."""
        for _ in range(RETRIES):
            a, b = sorted(spin(fitness, 2, self._rng))
            x, y = self._members[a], self._members[b]
            share = crossover_share(fitness, a, b)
            child = self._point(share * x.vector + (1.0 - share) * y.vector, "crossover", x, y)
            if child.vector.tobytes() not in self._born:
                break
        self._born.add(child.vector.tobytes())
        return child

    def _mutated(self, point: Point) -> Point:
        """Return a noisy copy; at least one coefficient differs, or it would be scored in vain."""
        size = len(point.vector)
        is_hit = self._rng.random(size) < self.gene_probability
        is_hit[self._rng.integers(size)] = True
        vector = point.vector + self.sigma * is_hit * self._rng.standard_normal(size)
        parents = point.parents if point.value is None else (point.id,)
        return Point(np.clip(vector, 0.0, 1.0), "mutation", parents)


def random_pairs(models: FloatArray, n: int, rng: np.random.Generator) -> list[Point]:
    """Return n mixtures of two different models each.

    All unordered pairs in random order, over again where n is larger; weights are two uniform
    numbers divided by their sum.

    Args:
        models: (C, D) at least two.
        n: How many.
        rng: Draws order and weights.
    """
    first, second = np.triu_indices(len(models), k=1)
    order = rng.permutation(len(first))
    points: list[Point] = []
    for i in range(n):
        pair = order[i % len(order)]
        u, v = rng.random(2)
        share = u / (u + v)
        vector = share * models[first[pair]] + (1.0 - share) * models[second[pair]]
        points.append(Point(vector, "random pair"))
    return points


def crossover_share(fitness: FloatArray, a: int, b: int) -> float:
    """Return f_a / (f_a + f_b) of (P,) fitness; negative fitness is shifted, 0 / 0 is a half."""
    lifted = fitness - min(float(fitness.min()), 0.0)
    total = lifted[a] + lifted[b]
    return float(lifted[a] / total) if total > 0.0 else 0.5


def _fitness(points: list[Point]) -> FloatArray:
    return np.array([point.fitness for point in points])
