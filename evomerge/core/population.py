"""Population: every candidate told so far, as arrays that grow at the end.

Shapes: P scored candidates, M objectives.
"""

from __future__ import annotations

import numpy as np

from evomerge.core.arrays import FloatArray, IntArray
from evomerge.core.candidate import Evaluation

_FIRST_CAPACITY = 64


class Population:
    """Scored candidates in the order they were told; append-only.

    Per-example scores and recipes are not kept: the journal has them.
    """

    def __init__(self, n_objectives: int) -> None:
        """Start empty, with M = `n_objectives`."""
        if n_objectives < 1:
            raise ValueError(f"n_objectives must be at least 1, is {n_objectives}")
        self._ids: IntArray = np.empty(_FIRST_CAPACITY, dtype=np.int64)
        self._values: FloatArray = np.empty((_FIRST_CAPACITY, n_objectives))
        self._n = 0
        self._failures = 0

    def __len__(self) -> int:
        """P, failures not counted."""
        return self._n

    @property
    def n_objectives(self) -> int:
        """M."""
        return int(self._values.shape[1])

    @property
    def failures(self) -> int:
        """How many candidates could not be scored."""
        return self._failures

    @property
    def candidate_ids(self) -> IntArray:
        """(P,) ids in the order they were told; a read-only view."""
        view = self._ids[: self._n]
        view.flags.writeable = False
        return view

    def objectives(self) -> FloatArray:
        """Return (P, M) objective values in the order of `candidate_ids`; a read-only view."""
        view = self._values[: self._n]
        view.flags.writeable = False
        return view

    def add(self, evaluation: Evaluation, values: FloatArray | None) -> None:
        """Append one evaluation.

        Args:
            evaluation: What was told; one with an `error` only counts as a failure.
            values: (M,) its finite objective values; ignored (may be None) on failure.

        Raises:
            ValueError: `values` is missing, has the wrong shape or is not finite.
        """
        if evaluation.error is not None:
            self._failures += 1
            return
        point = np.asarray([] if values is None else values, dtype=np.float64)
        if point.shape != (self.n_objectives,) or not np.isfinite(point).all():
            raise ValueError(
                f"candidate {evaluation.candidate.id}: expected {self.n_objectives} finite "
                f"objective values, got {values!r}"
            )
        if self._n == len(self._ids):
            self._ids = np.concatenate([self._ids, np.empty_like(self._ids)])
            self._values = np.concatenate([self._values, np.empty_like(self._values)])
        self._ids[self._n] = evaluation.candidate.id
        self._values[self._n] = point
        self._n += 1
