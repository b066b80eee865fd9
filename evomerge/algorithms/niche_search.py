"""The M2N2 loop without knowing what a model is: archive, parents, replacement.

`m2n2` runs it on segments of coefficients; benchmarks/m2n2_digits.py on dense vectors too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, Protocol, TypeVar

import numpy as np

from evomerge.core.arrays import FloatArray, IntArray, ScoreArray
from evomerge.core.niching import (
    Capacity,
    index_at,
    lift,
    roulette,
    sure_index_at,
    weighted_sums,
    worth,
)

Genome = TypeVar("Genome")

HALF_ULP = 2.0**-24  # of float32, relative
MARGIN = 1e-9  # relative; sums of a few thousand shares are exact to about 1e-13
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


@dataclass(frozen=True, eq=False)
class _View:
    """What is derived from the members' scores, and holds until a member is replaced.

    Attributes:
        rows: (P, N) scores, none negative.
        rough: (P, N) scores in float32.
        crowd: (N,) their sum.
        best: (N,) their maximum.
        shared: (N,) worth of one unit of score under full sharing.
        fitness: (P,) shared fitness.
        is_lifted: Whether the scores had to be shifted, see `niching.lift`.
        is_binary: Whether all scores are 0 or 1.
    """

    rows: FloatArray
    rough: ScoreArray
    crowd: FloatArray
    best: FloatArray
    shared: FloatArray
    fitness: FloatArray
    is_lifted: bool
    is_binary: bool

    @cached_property
    def by_worth(self) -> IntArray:
        """(N,) examples, those first that are worth most to another solver."""
        gain = np.maximum(self.best, 1.0) / (self.crowd + 1.0)
        order: IntArray = np.argsort(-gain, kind="stable")
        return order

    @cached_property
    def rough_edges(self) -> FloatArray | None:
        """(P, P) cumulative attractions to each 0/1 member, from float32 sums; None for others."""
        if not self.is_binary:
            return None
        lacking = (1.0 - self.rough) * self.shared.astype(np.float32)
        edges: FloatArray = (lacking @ self.rough.T).cumsum(axis=1, dtype=np.float64)
        return edges


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
        warm_up: int = 0,
    ) -> None:
        """Begin with an empty archive.

        Args:
            lineage: How children come about.
            rng: The only source of randomness.
            population_size: P, at least 2.
            alpha: Sharing strength.
            use_attraction: Draw the second parent by attraction; else by fitness.
            capacity: Worth of an example, see `core.niching`.
            warm_up: So many children come from `Lineage.warm_up` before members breed.
        """
        self._lineage = lineage
        self._rng = rng
        self._size = population_size
        self._alpha = alpha
        self._use_attraction = use_attraction
        self._capacity: Capacity = capacity
        self._warm_up_left = warm_up
        self._scores: FloatArray | None = None  # (P + 1, N); the last row is the newcomer's
        self._rough: ScoreArray = np.empty((0, 0), np.float32)  # the same, for a quick look
        self._ids: list[int] = []
        self.members: list[Genome] = []
        self._seen: set[bytes] = set()
        self._view: _View | None = None  # of the members, until one enters
        self._scratch: FloatArray = np.empty((0, 0))

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
        self._warm_up_left = max(self._warm_up_left - 1, 0)
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
            ValueError: N differs from the first tell's, or a score is not finite.
        """
        if self._scores is None:
            self._scores = np.zeros((self._size + 1, len(scores)))
            self._rough = np.zeros(self._scores.shape, np.float32)
            self._scratch = np.empty_like(self._scores)
        if len(scores) != self._scores.shape[1]:
            raise ValueError(f"expected {self._scores.shape[1]} scores, got {len(scores)}")
        # The sum is quicker, and not finite where a score is not; it may also overflow.
        if not math.isfinite(np.add.reduce(scores)) and not np.isfinite(scores).all():
            raise ValueError("a score is not finite")
        filled = len(self.members)
        self._scores[filled] = self._rough[filled] = scores
        if filled < self._size:
            slot = filled
            self.members.append(genome)
            self._ids.append(member_id)
        else:
            rows, values = self._contest()
            if self._is_certain_loser(rows, values):
                return False
            slot = int(weighted_sums(rows, values, self._scratch).argmin())
            if slot == self._size:
                return False
            self._scores[slot] = self._rough[slot] = scores
            self.members[slot] = genome
            self._ids[slot] = member_id
        self._view = None
        return True

    def archive_scores(self) -> FloatArray:
        """Return (P, N) scores of the members, by slot."""
        if self._scores is None:
            return np.zeros((0, 0))
        return self._scores[: len(self.members)].copy()

    def example_order(self, parents: tuple[int, ...]) -> IntArray | None:
        """Return (N,) examples, those first whose scores may doom a child of these members.

        What both parents fail comes before what one fails, and within that what is worth most.
        None while the archive has empty slots: it then takes anyone.

        Args:
            parents: Ids of members; others are passed over.
        """
        if len(self.members) < self._size:
            return None
        view = self._members_view()
        slots = [self._ids.index(parent) for parent in parents if parent in self._ids]
        solved = view.rows[slots].sum(axis=0)[view.by_worth]
        return view.by_worth[np.argsort(solved.astype(np.int16), kind="stable")]

    def rejects(self, examples: IntArray, scores: ScoreArray | FloatArray) -> bool:
        """Return whether a newcomer cannot enter, whatever its other scores in [0, 1] are.

        With alpha <= 1 a better score never lowers the newcomer's shared fitness relative to any
        member's, so it is enough to look at the case that all other scores are 1.

        Args:
            examples: (n,) examples that are scored already.
            scores: (n,) their scores.
        """
        if len(self.members) < self._size or self._alpha > 1.0 or self._members_view().is_lifted:
            return False
        assert self._scores is not None
        if scores.min() < 0.0:
            return False
        for newcomer in (self._scores[-1], self._rough[-1]):
            newcomer.fill(1.0)
            newcomer[examples] = scores
        return self._is_certain_loser(*self._contest())

    def _contest(self) -> tuple[FloatArray, FloatArray]:
        """Return the (P + 1, N) scores of a full archive and a newcomer, and examples' worth."""
        assert self._scores is not None
        view, newcomer = self._members_view(), self._scores[-1]
        if view.is_lifted or newcomer.min() < 0.0:
            rows = lift(self._scores)
            crowd, best = rows.sum(axis=0), rows.max(axis=0)
        else:
            # What `sum` and `max` over all rows give, to the bit: NumPy adds rows in order.
            rows = self._scores
            crowd, best = view.crowd + newcomer, np.maximum(view.best, newcomer)
        return rows, worth(crowd, best, self._alpha, self._capacity)

    def _is_certain_loser(self, rows: FloatArray, values: FloatArray) -> bool:
        """Return whether the last row's fitness is the lowest by more than rounding.

        A quick look that spares most newcomers the exact sums; it decides no close case.
        """
        rough: ScoreArray | FloatArray
        if rows is self._scores:
            rough, margin = self._rough @ values.astype(np.float32), self._tolerance
        else:
            rough, margin = rows @ values, MARGIN
        return float(rough[-1]) < float(rough[:-1].min()) * (1.0 - 2.0 * margin)

    @property
    def _tolerance(self) -> float:
        """Largest relative error of a float32 sum of N products of numbers rounded to float32."""
        return float((self._rough.shape[1] + 4) * HALF_ULP)

    def _members_view(self) -> _View:
        """Return what choosing parents and replacing members needs to know of the archive."""
        if self._view is None:
            assert self._scores is not None
            stored = self._scores[: len(self.members)]
            rows = lift(stored)
            crowd, best = rows.sum(axis=0), rows.max(axis=0)
            values = worth(crowd, best, self._alpha, self._capacity)
            shared = values if self._alpha == 1.0 else worth(crowd, best, 1.0, self._capacity)
            fitness = weighted_sums(rows, values, self._scratch[: len(rows)])
            is_binary = bool(((rows == 0.0) | (rows == 1.0)).all())
            rough, is_lifted = self._rough[: len(rows)], rows is not stored
            self._view = _View(rows, rough, crowd, best, shared, fitness, is_lifted, is_binary)
        return self._view

    def _breed(self) -> Offspring[Genome]:
        if len(self.members) < 2 or self._warm_up_left:
            return Offspring(self._lineage.warm_up(self._rng), ())
        a, b = self._pick_parents()
        child = self._lineage.cross(self.members[a], self.members[b], self._rng)
        return Offspring(child, (self._ids[a], self._ids[b]))

    def _pick_parents(self) -> tuple[int, int]:
        view = self._members_view()
        a = roulette(view.fitness, self._rng)
        if not self._use_attraction:
            return a, roulette(view.fitness, self._rng, exclude=a)
        draw = self._rng.random()
        edges = view.rough_edges
        sure = None if edges is None else sure_index_at(draw, edges[a], self._tolerance)
        return a, index_at(draw, self._attraction(view, a), a) if sure is None else sure

    def _attraction(self, view: _View, member: int) -> FloatArray:
        """Return `niching.attraction` of the members to one of them."""
        scratch, own = self._scratch[: len(view.rows)], view.rows[member]
        if view.is_binary:  # the same products at half the cost
            return weighted_sums(view.rows, np.where(own == 0.0, view.shared, 0.0), scratch)
        gains = np.subtract(view.rows, own, out=scratch)
        np.maximum(gains, 0.0, out=gains)
        return weighted_sums(gains, view.shared, gains)
