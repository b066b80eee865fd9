"""CycleQD: every task in turn is the quality, and the others are what sets members apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evomerge.algorithms.algorithm import require_dimensions, search_algorithm
from evomerge.algorithms.generations import require_within
from evomerge.algorithms.genome import random_pairs
from evomerge.algorithms.pending import Pending
from evomerge.core.arrays import FloatArray
from evomerge.core.candidate import Evaluation, Proposal
from evomerge.core.choice_space import Space
from evomerge.core.corners import corners
from evomerge.core.objective import Objectives
from evomerge.core.selection import spin
from evomerge.errors import ConfigError

Cell = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Member:
    """A scored point: its (D,) vector, its quality in one archive, and its candidate's id."""

    vector: FloatArray
    quality: float
    id: int


@search_algorithm("cycle_qd")
@dataclass(kw_only=True)
class CycleQd:
    """One archive per objective; each ask breeds from the next one.

    The archive of an objective keeps the best member on it in every cell, and cells are made of the
    other objectives' values. Two parents are drawn by `elite_odds`; the child is the mean of their
    task vectors with weights near 1, plus noise. Whatever archive it was bred for, a child enters
    all of them. Founders that the space can express enter too. Never waits: while an archive has
    fewer than two members, random pairs of models are mixed.

    Source: Kuroki et al. 2024, arXiv:2410.14735, and the code SakanaAI/CycleQD.
    Differs from them: noise goes on coefficients, where they perturb singular values or weights;
    the code's own CMA-ES over crossover weights is left out; all cells have one range of values,
    and values outside count for the first or last cell.

    Attributes:
        cells: Cells per objective.
        low: Value where the first cell begins.
        high: Value where the last cell ends; set both for scores outside [0, 1].
        crossover_sigma: Standard deviation of the parents' weights around 1.
        mutation_sigma: Standard deviation of the noise, as a share of a coefficient's range.
    """

    cells: int = 15
    low: float = 0.0
    high: float = 1.0
    crossover_sigma: float = 0.01
    mutation_sigma: float = 0.05

    def __post_init__(self) -> None:
        """Refuse values that cannot work.

        Raises:
            ConfigError: A field is out of range.
        """
        require_within("cells", self.cells, 1)
        require_within("crossover_sigma", self.crossover_sigma, 0.0, 0.2)
        require_within("mutation_sigma", self.mutation_sigma, 1e-9, 1.0)
        if not (np.isfinite([self.low, self.high]).all() and self.low < self.high):
            raise ConfigError(f"algorithm.low and high are {self.low} and {self.high}: no range")

    def start(self, space: Space, objectives: Objectives, rng: np.random.Generator) -> None:
        """Begin a run.

        Raises:
            ConfigError: Nothing is searched, or there is one objective only.
        """
        require_dimensions(space, "cycle_qd")
        if len(objectives) < 2:
            raise ConfigError(
                "algorithm 'cycle_qd' needs two objectives or more, to tell members apart by those "
                "that are not the quality. Add tasks, or use genome or cma_es."
            )
        self._space, self._objectives, self._rng = space, objectives, rng
        self._models = corners(space)
        self._archives: list[dict[Cell, Member]] = [{} for _ in range(len(objectives))]
        self._turn = 0
        self._pending: Pending[FloatArray] = Pending()

    def ask(self) -> Proposal:
        """Return a child of two members of the archive whose turn it is."""
        archive = self._archives[self._turn]
        self._turn = (self._turn + 1) % len(self._archives)
        if len(archive) < 2:
            vector = random_pairs(self._models, 1, self._rng)[0].vector
            return self._propose(vector, (), "random pair")
        members = list(archive.values())
        quality = np.array([member.quality for member in members])
        odds = elite_odds(quality, np.array(list(archive), dtype=np.float64))
        a, b = (members[i] for i in spin(odds, 2, self._rng))
        weights = self._rng.normal(1.0, self.crossover_sigma, size=2)
        child = (weights[0] * a.vector + weights[1] * b.vector) / weights.sum()
        child += self.mutation_sigma * self._rng.standard_normal(len(child))
        return self._propose(child, (a.id, b.id), f"for {self._objectives.names[self._turn - 1]}")

    def _propose(self, vector: FloatArray, parents: tuple[int, ...], origin: str) -> Proposal:
        vector = np.clip(vector, 0.0, 1.0)
        recipe = self._space.decode(vector)
        self._pending.put(recipe, vector)
        return Proposal(recipe, parents, origin)

    def tell(self, evaluation: Evaluation) -> None:
        """Offer a scored candidate to every archive; failures leave no trace."""
        recipe = evaluation.candidate.recipe
        vector = self._pending.pop(recipe)
        if evaluation.error is not None:
            return
        if vector is None:
            vector = self._space.encode(recipe)
            if vector is None:
                return
        values = self._objectives.values(evaluation)
        for task, archive in enumerate(self._archives):
            cell = self._cell(np.delete(values, task))
            member = Member(vector, float(values[task]), evaluation.candidate.id)
            if cell not in archive or archive[cell].quality < member.quality:
                archive[cell] = member

    def _cell(self, values: FloatArray) -> Cell:
        share = (values - self.low) / (self.high - self.low)
        index = np.floor(share.clip(0.0, 1.0) * self.cells).astype(np.int64)
        return tuple(int(i) for i in index.clip(0, self.cells - 1))


def elite_odds(quality: FloatArray, cells: FloatArray) -> FloatArray:
    """Return (P,) odds of becoming a parent: quality times each descriptor, all on [0.5, 1.3].

    A quantity on which all members agree counts as 1.

    Args:
        quality: (P,) values of the archive's objective.
        cells: (P, M - 1) cell numbers.

    Source: the code's elite sampling (0.5 at the least, 0.8 wide).
    """
    columns = np.column_stack([quality, cells])
    low = columns.min(axis=0)
    width = columns.max(axis=0) - low
    scaled = 0.5 + 0.8 * (columns - low) / np.where(width > 0.0, width, 1.0)
    odds: FloatArray = np.where(width > 0.0, scaled, 1.0).prod(axis=1)
    return odds
