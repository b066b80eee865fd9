"""The front of a run with constraints: the feasible front, or who comes nearest to one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evomerge.core.arrays import FloatArray
from evomerge.core.feasibility import Feasibility
from evomerge.core.objective import Constraint
from evomerge.core.pareto import FrontArchive, ParetoFront


class ConstrainedFront:
    """The front so far, updated one candidate at a time.

    It holds feasible candidates. While there are none, it holds those whose violation is least
    (of several, the ones that none of them dominates). Without constraints all are feasible.

    Source: Deb 2000, Comput. Methods Appl. Mech. Eng. 186.
    """

    def __init__(self, constraints: Sequence[Constraint] = (), *, n_objectives: int) -> None:
        """Start empty; `n_objectives` is M."""
        self._n_objectives = n_objectives
        self.feasibility = Feasibility(constraints)
        self._feasible = FrontArchive(n_objectives=n_objectives)
        self._nearest = FrontArchive(n_objectives=n_objectives)
        self._least = np.inf  # violation of the members of `_nearest`
        self._n_feasible = 0
        # All scored candidates, kept only until the last bound is known.
        self._undecided: list[tuple[int, FloatArray, FloatArray]] = []

    def __len__(self) -> int:
        """F."""
        return len(self._shown)

    @property
    def _shown(self) -> FrontArchive:
        return self._feasible if self.is_feasible else self._nearest

    @property
    def is_feasible(self) -> bool:
        """Whether the members keep all constraints; True for a front without members."""
        return len(self._feasible) > 0 or len(self._nearest) == 0

    @property
    def n_feasible(self) -> int:
        """How many candidates so far, on the front or not, keep all constraints."""
        return self._n_feasible

    @property
    def reference(self) -> FloatArray | None:
        """(M,) reference point of the hypervolume, None until it is known."""
        return self._feasible.reference

    def set_reference(self, reference: FloatArray) -> None:
        """Fix the (M,) reference point; ValueError when the shape is wrong or it is not finite."""
        self._feasible.set_reference(reference)

    def add(
        self,
        candidate_id: int,
        values: FloatArray,
        measured: FloatArray | None = None,
        origin: str = "",
    ) -> bool:
        """Return whether the front changed.

        Args:
            candidate_id: Its id.
            values: (M,) finite objective values.
            measured: (C,) what the constraints measure; not needed without constraints.
            origin: How it came about; by it the sources are known that bounds refer to.

        Raises:
            ValueError: A shape is wrong or a value is not finite.
        """
        found = np.zeros(0) if measured is None else np.asarray(measured, dtype=np.float64)
        if found.shape != (len(self.feasibility),):
            raise ValueError(
                f"candidate {candidate_id}: {len(self.feasibility)} constraints, "
                f"measured values of shape {found.shape}"
            )
        if not self.feasibility.is_known:
            self._undecided.append((candidate_id, np.array(values), found))
        if self.feasibility.learn(origin, found):
            self._decide_again()
            return True
        return self._place(candidate_id, values, found)

    def _place(self, candidate_id: int, values: FloatArray, measured: FloatArray) -> bool:
        if self.feasibility.is_feasible(measured):
            self._n_feasible += 1
            return self._feasible.add(candidate_id, values)
        violation = self.feasibility.violation(measured)
        if violation > self._least:
            return False
        if violation < self._least:
            self._nearest = FrontArchive(n_objectives=self._n_objectives)
            self._least = violation
        return self._nearest.add(candidate_id, values) and self._n_feasible == 0

    def _decide_again(self) -> None:
        self._nearest, self._least = FrontArchive(n_objectives=self._n_objectives), np.inf
        for item in self._undecided:
            self._place(*item)
        if self.feasibility.is_known:
            self._undecided = []

    def front(self) -> ParetoFront:
        """Return a copy of the front, by rising candidate id."""
        return self._shown.front()

    def hypervolume(self) -> float | None:
        """Return the hypervolume of the feasible front, 0 while there is none.

        None without a reference, and where it takes too long; see `FrontArchive.hypervolume`.
        """
        return self._feasible.hypervolume()
