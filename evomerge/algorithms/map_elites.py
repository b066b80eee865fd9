"""MAP-Elites: the best member of every cell of a grid over two skills."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, get_args

import numpy as np

from evomerge.algorithms.algorithm import require_span, search_algorithm
from evomerge.algorithms.m2n2 import AngleScope, SpanLineage
from evomerge.algorithms.niche_search import RETRIES
from evomerge.algorithms.pending import Pending
from evomerge.core.candidate import Evaluation, Proposal
from evomerge.core.choice_space import Space
from evomerge.core.linear_span import Segments
from evomerge.core.objective import Objectives
from evomerge.errors import ConfigError

Cell = tuple[int, int]


@dataclass(frozen=True, eq=False)
class _Elite:
    """Who holds a cell."""

    segments: Segments
    candidate_id: int
    value: float


@search_algorithm("map_elites")
@dataclass(kw_only=True)
class MapElites:
    """A grid over two skills whose cells keep their best member; parents are drawn uniformly.

    The skills are the first two objectives; of a single one, the mean scores on every other
    example. Quality is the mean of all objectives. Children are M2N2's: SLERP with a split point
    in the span of the sources. Founders that lie in that span take part. Never waits.

    Source: Mouret & Clune 2015, arXiv:1504.04909, as the baseline of Abrantes et al. 2025
    (M2N2), arXiv:2508.16204: a 10 x 10 grid over the accuracies on odd and even digits.
    Differs from the reference code: parents are two different members; duplicates are redrawn.

    Attributes:
        bins: Cells along each skill.
        low: Skill at the lower edge of the grid; lower ones count as this.
        high: Skill at the upper edge; higher ones count as this.
        split_point: See `M2N2`.
        angle_scope: See `M2N2`.
        max_segments: See `M2N2`.
    """

    needs_span: ClassVar[bool] = True

    bins: int = 10
    low: float = 0.0
    high: float = 1.0
    split_point: bool = True
    angle_scope: AngleScope = "global"
    max_segments: int = 256

    def __post_init__(self) -> None:
        """Refuse values that cannot work.

        Raises:
            ConfigError: A field is out of range.
        """
        for name, least in (("bins", 2), ("max_segments", 2)):
            if getattr(self, name) < least:
                raise ConfigError(
                    f"algorithm.{name} is {getattr(self, name)}, must be at least {least}"
                )
        if not -np.inf < self.low < self.high < np.inf:
            raise ConfigError(f"algorithm.low is {self.low}, must be below high, {self.high}")
        if self.angle_scope not in get_args(AngleScope):
            raise ConfigError(
                f"algorithm.angle_scope is {self.angle_scope!r}, must be one of "
                f"{get_args(AngleScope)}"
            )

    def start(self, space: Space, objectives: Objectives, rng: np.random.Generator) -> None:
        """Begin a run.

        Raises:
            ConfigError: The space does not know the span of its sources.
        """
        self._span, self._objectives, self._rng = require_span(space, "map_elites"), objectives, rng
        self._lineage = SpanLineage(
            span=self._span,
            split_point=self.split_point,
            angle_scope=self.angle_scope,
            max_segments=self.max_segments,
        )
        self._cells: dict[Cell, _Elite] = {}
        self._pending: Pending[Segments] = Pending()
        self._seen: set[bytes] = set()

    @property
    def n_cells(self) -> int:
        """How many cells of the grid are taken."""
        return len(self._cells)

    def ask(self) -> Proposal:
        """Return a child of two elites, or of two sources while there are too few."""
        for _ in range(RETRIES + 1):
            genome, parents = self._breed()
            key = self._lineage.key(genome)
            if key not in self._seen:
                break
        self._seen.add(key)
        recipe = self._span.recipe(genome)
        self._pending.put(recipe, genome)
        return Proposal(recipe, parents, "crossover" if parents else "warm-up")

    def tell(self, evaluation: Evaluation) -> None:
        """Put a scored candidate into its cell if it is at least as good as who is there."""
        segments = self._pending.pop(evaluation.candidate.recipe)
        if evaluation.error is not None:
            return
        if segments is None:
            segments = self._span.segments(evaluation.candidate.recipe)
            if segments is None:
                return
            self._seen.add(self._lineage.key(segments))
        value = float(self._objectives.values(evaluation).mean())
        cell = self._cell(evaluation)
        holder = self._cells.get(cell)
        if holder is None or value >= holder.value:
            self._cells[cell] = _Elite(segments, evaluation.candidate.id, value)

    def _cell(self, evaluation: Evaluation) -> Cell:
        skills = self._objectives.values(evaluation)[:2]
        if len(skills) < 2:
            scores = evaluation.flat_scores().astype(np.float64)
            # A lone example is both halves.
            skills = np.array([scores[::2].mean(), scores[min(1, len(scores) - 1) :: 2].mean()])
        unit = (skills - self.low) / (self.high - self.low)
        first, second = np.clip((unit * self.bins).astype(np.int64), 0, self.bins - 1)
        return int(first), int(second)

    def _breed(self) -> tuple[Segments, tuple[int, ...]]:
        if len(self._cells) < 2:
            return self._lineage.warm_up(self._rng), ()
        elites = [self._cells[cell] for cell in sorted(self._cells)]
        first, second = self._rng.choice(len(elites), 2, replace=False)
        a, b = elites[first], elites[second]
        child = self._lineage.cross(a.segments, b.segments, self._rng)
        return child, (a.candidate_id, b.candidate_id)
