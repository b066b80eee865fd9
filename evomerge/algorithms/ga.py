"""GA: the plain genetic algorithm that M2N2 is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from evomerge.algorithms.algorithm import require_span, search_algorithm
from evomerge.algorithms.m2n2 import M2N2, AngleScope
from evomerge.core.candidate import Evaluation, Proposal
from evomerge.core.choice_space import Space
from evomerge.core.objective import Objectives


@search_algorithm("ga")
@dataclass(kw_only=True)
class Ga:
    """M2N2 without niches: plain accuracy decides who stays, and draws both parents.

    Source: Abrantes et al. 2025 (M2N2), arXiv:2508.16204, its baseline; spec: algorithms.md §1.
    Differs from the reference code: as `M2N2` does.

    Attributes:
        population_size: P, members of the archive.
        split_point: See `M2N2`.
        angle_scope: See `M2N2`.
        max_segments: See `M2N2`.
    """

    needs_span: ClassVar[bool] = True

    population_size: int = 20
    split_point: bool = True
    angle_scope: AngleScope = "global"
    max_segments: int = 256

    def __post_init__(self) -> None:
        """Refuse values that cannot work.

        Raises:
            ConfigError: A field is out of range.
        """
        # Capacity "one": with alpha 0 the sum over examples is then the plain sum of scores.
        self._engine = M2N2(
            population_size=self.population_size,
            alpha=0.0,
            split_point=self.split_point,
            attraction=False,
            angle_scope=self.angle_scope,
            capacity="one",
            max_segments=self.max_segments,
        )

    @property
    def champion(self) -> Evaluation | None:
        """The evaluation with the best mean of objectives so far."""
        return self._engine.champion

    def start(self, space: Space, objectives: Objectives, rng: np.random.Generator) -> None:
        """Begin a run.

        Raises:
            ConfigError: The space does not know the span of its sources.
        """
        require_span(space, "ga")
        self._engine.start(space, objectives, rng)

    def ask(self) -> Proposal:
        """Return a child of two members, or of two sources while there are too few."""
        return self._engine.ask()

    def tell(self, evaluation: Evaluation) -> None:
        """Offer a scored candidate to the archive; failures leave no trace."""
        self._engine.tell(evaluation)
