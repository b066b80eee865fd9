"""The M2N2 loop without knowing what a model is: archive, parents, replacement.

`m2n2` runs it on segments of coefficients; benchmarks/m2n2_digits.py on dense vectors too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np

from evomerge.core.arrays import FloatArray, ScoreArray
from evomerge.core.niching import (
    Capacity,
    attraction,
    lift,
    roulette,
    shared_fitness,
)

Genome = TypeVar("Genome")

RETRIES = 8  # redraws when a child was proposed before, then it is proposed again


class Lineage(Protocol[Genome]):
    """How children come about: in coefficients, or in weights."""

    def cross(self, a: Genome, b: Genome, rng: np.random.Generator) -> Genome:
        """Return a child of two parents."""
        ...

    def warm_up(self, rng: np.random.Generator) -> Genome:
        """Return a member to score while there are fewer than two to breed from."""
        ...

    def key(self, genome: Genome) -> bytes | None:
        """Return a key that equal members share; None when duplicates cannot occur."""
        ...


@dataclass(frozen=True, eq=False)
class Offspring(Generic[Genome]):
    """A member to score, and the ids of its parents (none for a warm-up)."""

    genome: Genome
    parents: tuple[int, ...]


class NicheSearch(Generic[Genome]):
    """A steady-state archive of P members under fitness sharing.

    A newcomer fills an empty slot, or else competes with all members: the lowest shared
    fitness of the P + 1 goes. Ties go against the lowest slot, so a newcomer that ties enters:
    the drift between equals is wanted.
    """

    def __init__(
        self,
        lineage: Lineage[Genome],
        rng: np.random.Generator,
        *,
        population_size: int,
        alpha: float,
        use_attraction: bool,
        capacity: Capacity = "auto",
    ) -> None:
        """Begin with an empty archive.

        Args:
            lineage: How children come about.
            rng: The only source of randomness.
            population_size: P, at least 2.
            alpha: Sharing strength.
            use_attraction: Draw the second parent by attraction; else by fitness.
            capacity: Worth of an example, see `core.niching`.
        """
        self._lineage = lineage
        self._rng = rng
        self._size = population_size
        self._alpha = alpha
        self._use_attraction = use_attraction
        self._capacity: Capacity = capacity
        self._scores: FloatArray | None = None  # (P + 1, N); the last row is the newcomer's
        self._ids: list[int] = []
        self.members: list[Genome] = []
        self._seen: set[bytes] = set()
        self._lifted: FloatArray | None = None  # cache of `_comparable`
        self._fitness: FloatArray | None = None

    def __len__(self) -> int:
        return len(self.members)

    @property
    def ids(self) -> tuple[int, ...]:
        """Ids of the members, by slot."""
        return tuple(self._ids)

    def ask(self) -> Offspring[Genome]:
        """Return the next member to score; one proposed before only if redraws run out."""
        offspring = self._breed()
        key = self._lineage.key(offspring.genome)
        for _ in range(RETRIES):
            if key is None or key not in self._seen:
                break
            offspring = self._breed()
            key = self._lineage.key(offspring.genome)
        if key is not None:
            self._seen.add(key)
        return offspring

    def mark_proposed(self, genome: Genome) -> None:
        """Take care that no equal member is proposed; for members that were not asked for."""
        key = self._lineage.key(genome)
        if key is not None:
            self._seen.add(key)

    def tell(self, genome: Genome, scores: ScoreArray | FloatArray, member_id: int) -> bool:
        """Offer a scored member to the archive.

        Args:
            genome: What was scored.
            scores: (N,) per-example scores, higher is better, of the same examples each time.
            member_id: What to call it in `Offspring.parents`.

        Returns:
            Whether it entered.

        Raises:
            ValueError: N differs from the first tell's.
        """
        if self._scores is None:
            self._scores = np.zeros((self._size + 1, len(scores)))
        if len(scores) != self._scores.shape[1]:
            raise ValueError(f"expected {self._scores.shape[1]} scores, got {len(scores)}")
        filled = len(self.members)
        self._scores[filled] = scores
        if filled < self._size:
            slot = filled
            self.members.append(genome)
            self._ids.append(member_id)
        else:
            rows = lift(self._scores)
            slot = int(shared_fitness(rows, self._alpha, self._capacity).argmin())
            if slot == self._size:
                return False
            self._scores[slot] = scores
            self.members[slot] = genome
            self._ids[slot] = member_id
        self._lifted = self._fitness = None
        return True

    def _comparable(self) -> tuple[FloatArray, FloatArray]:
        """Return the members' (P, N) scores, none negative, and their (P,) shared fitness."""
        if self._lifted is None or self._fitness is None:
            assert self._scores is not None
            self._lifted = lift(self._scores[: len(self.members)])
            self._fitness = shared_fitness(self._lifted, self._alpha, self._capacity)
        return self._lifted, self._fitness

    def _breed(self) -> Offspring[Genome]:
        if len(self.members) < 2:
            return Offspring(self._lineage.warm_up(self._rng), ())
        a, b = self._pick_parents()
        child = self._lineage.cross(self.members[a], self.members[b], self._rng)
        return Offspring(child, (self._ids[a], self._ids[b]))

    def _pick_parents(self) -> tuple[int, int]:
        scores, fitness = self._comparable()
        a = roulette(fitness, self._rng)
        pull = attraction(scores, a, self._capacity) if self._use_attraction else fitness
        return a, roulette(pull, self._rng, exclude=a)
