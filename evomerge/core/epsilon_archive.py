"""A thin front: one candidate per box of a grid, so that noise does not fill it.

Shapes: M objectives, all maximised.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evomerge.core.arrays import FloatArray
from evomerge.core.pareto import ParetoFront


class EpsilonArchive:
    """Boxes of width epsilon that no other box dominates, each with its best candidate.

    Whatever was added is at most epsilon better than some member, in every objective. In its own
    box a candidate wins that dominates, else the one nearer to the box's best corner, else the one
    that was there first. Epsilon near one standard error keeps what the scores can tell apart.

    Source: Laumanns et al. 2002, Evolutionary Computation 10(3); Deb et al. 2005 (epsilon-MOEA).
    """

    def __init__(self, epsilon: Sequence[float] | FloatArray) -> None:
        """Start empty.

        Args:
            epsilon: (M,) widths, finite and above 0.

        Raises:
            ValueError: A width is not.
        """
        self._epsilon = np.array(epsilon, dtype=np.float64)
        widths = self._epsilon
        if widths.ndim != 1 or not len(widths) or not (np.isfinite(widths) & (widths > 0)).all():
            raise ValueError(f"epsilon must be (M,) finite widths above 0, got {epsilon!r}")
        self._members: dict[tuple[int, ...], tuple[int, FloatArray]] = {}

    def __len__(self) -> int:
        """How many members, one per box."""
        return len(self._members)

    def add(self, candidate_id: int, values: FloatArray) -> bool:
        """Return whether the candidate entered (it then threw out what its box dominates).

        Args:
            candidate_id: Its id.
            values: (M,) finite objective values.

        Raises:
            ValueError: The shape is wrong or a value is not finite.
        """
        point = np.array(values, dtype=np.float64)
        if point.shape != self._epsilon.shape or not np.isfinite(point).all():
            raise ValueError(
                f"candidate {candidate_id}: expected {len(self._epsilon)} finite values, "
                f"got {values!r}"
            )
        box = np.floor(point / self._epsilon)
        key = tuple(int(side) for side in box)
        rival = self._members.get(key)
        if rival is not None:
            if not self._is_better(point, rival[1], box):
                return False
            self._members[key] = (candidate_id, point)
            return True
        others = list(self._members)
        grid = np.array(others, dtype=np.float64).reshape(len(others), len(box))
        if (grid >= box).all(axis=1).any():
            return False
        for index in np.flatnonzero((grid <= box).all(axis=1)):
            del self._members[others[index]]
        self._members[key] = (candidate_id, point)
        return True

    def _is_better(self, point: FloatArray, rival: FloatArray, box: FloatArray) -> bool:
        if (point >= rival).all():
            return bool((point > rival).any())
        if (rival >= point).all():
            return False
        corner = box + 1.0
        away, rival_away = (
            float(np.square(corner - values / self._epsilon).sum()) for values in (point, rival)
        )
        return away < rival_away

    def front(self) -> ParetoFront:
        """Return the members by rising candidate id; boxes compared, not values."""
        ids = np.array([member[0] for member in self._members.values()], dtype=np.int64)
        values = np.array([member[1] for member in self._members.values()])
        order = np.argsort(ids, kind="stable")
        return ParetoFront(ids[order], values.reshape(len(ids), len(self._epsilon))[order])
