"""Random search: the control that every other algorithm has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evomerge.algorithms.algorithm import require_dimensions, search_algorithm
from evomerge.core.candidate import Evaluation, Proposal
from evomerge.core.choice_space import Space
from evomerge.core.objective import Objectives


@search_algorithm("random")
@dataclass(kw_only=True)
class RandomSearch:
    """Uniform points of the unit cube, independent of all scores. Never waits.

    Source: Bergstra & Bengio 2012 (random search for hyper-parameter optimization, JMLR 13).
    Differs from it in nothing.
    """

    def start(self, space: Space, objectives: Objectives, rng: np.random.Generator) -> None:
        """Begin a run.

        Raises:
            ConfigError: The space has nothing to search.
        """
        del objectives
        require_dimensions(space, "random")
        self._space, self._rng = space, rng

    def ask(self) -> Proposal:
        """Return a recipe drawn uniformly from the search space."""
        vector = self._rng.random(self._space.dimension)
        return Proposal(self._space.decode(vector), origin="uniform")

    def tell(self, evaluation: Evaluation) -> None:
        """Learn nothing."""
