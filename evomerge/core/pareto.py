"""Dominance, crowding, hypervolume and the front of a run; every objective is maximised.

Shapes: n points (or P members, F of them on the front), M objectives.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evomerge.core.arrays import BoolArray, FloatArray, IntArray

MAX_OBJECTIVES = 6  # exact hypervolume costs O(n^(M-2) log n)
MAX_MEMBERS = 200  # of an archive with more than 4 objectives; one second at 6


@dataclass(frozen=True, eq=False)
class ParetoFront:
    """Candidates that no other candidate dominates.

    Attributes:
        candidate_ids: (F,) ids, rising.
        objectives: (F, M) their objective values, one row per id.
    """

    candidate_ids: IntArray
    objectives: FloatArray

    def __len__(self) -> int:
        return len(self.candidate_ids)

    @classmethod
    def of(cls, candidate_ids: Sequence[int] | IntArray, objectives: FloatArray) -> ParetoFront:
        """Return the front of (P,) candidates with (P, M) values.

        Of candidates with equal values the one with the smallest id is kept.
        """
        values = _checked(objectives)
        ids = np.asarray(candidate_ids, dtype=np.int64)
        if ids.shape != values.shape[:1]:
            raise ValueError(f"{ids.shape} candidate ids for objectives of shape {values.shape}")
        order = np.argsort(ids, kind="stable")
        ids, values = ids[order], values[order]
        kept = np.flatnonzero(non_dominated_mask(values))
        if len(kept):
            _, first = np.unique(values[kept], axis=0, return_index=True)
            kept = kept[np.sort(first)]
        return cls(ids[kept], values[kept])


def non_dominated_mask(points: FloatArray) -> BoolArray:
    """Return (n,) True where no other point is at least as good everywhere and better somewhere.

    Equal points do not dominate each other. M = 2 takes O(n log n) time, otherwise
    O(M n^2) at worst.

    Args:
        points: (n, M) finite values, higher is better.

    Raises:
        ValueError: `points` is not (n, M) or holds a value that is not finite.
    """
    unique, inverse = _unique_rows(_checked(points))
    n, n_objectives = unique.shape
    keep = np.zeros(n, dtype=np.bool_)
    if n_objectives <= 2:
        # Rows rise by (first, last): going down, a row survives if its last value is a record.
        last = unique[::-1, -1]
        best_before = np.concatenate([[-np.inf], np.maximum.accumulate(last)[:-1]])
        keep[::-1] = last > best_before
        if n_objectives == 1:
            keep[:-1] = False
        return keep[inverse]
    # Good points first, so that most of the others fall early.
    alive = np.argsort(-unique.sum(axis=1), kind="stable")
    rows = unique[alive]
    position = 0
    while position < len(rows):
        stays = (rows > rows[position]).any(axis=1)
        stays[position] = True
        position = int(np.count_nonzero(stays[:position])) + 1
        rows, alive = rows[stays], alive[stays]
    keep[alive] = True
    return keep[inverse]


def non_dominated_sort(points: FloatArray) -> IntArray:
    """Return (n,) the front of each point: 0 is non-dominated, 1 is so once 0 is gone.

    Equal points share a front. M <= 2 takes O(n log n) time, otherwise O(M n^2) at worst.

    Args:
        points: (n, M) finite values, higher is better.

    Raises:
        ValueError: `points` is not (n, M) or holds a value that is not finite.

    Source: Zhang et al. 2015 (ENS-BS), IEEE TEVC 19(2): a point enters the first front
    with no member that dominates it, found by bisection.
    """
    unique, inverse = _unique_rows(_checked(points))
    n, n_objectives = unique.shape
    ranks = np.zeros(n, dtype=np.int64)
    if n_objectives <= 2:
        tops: list[float] = []  # minus the best last value of each front: rises with the front
        for i in range(n - 1, -1, -1):
            # 1 objective: every value is its own front.
            value = float(unique[i, -1]) if n_objectives == 2 else 0.0
            # The first front whose best last value is lower; an equal one dominates.
            rank = bisect_right(tops, -value)
            if rank == len(tops):
                tops.append(-value)
            else:
                tops[rank] = -value
            ranks[i] = rank
        return ranks[inverse]
    fronts: list[_Rows] = []
    for i in range(n - 1, -1, -1):  # no point dominates one that comes before it
        point = unique[i]
        low, high = 0, len(fronts)
        while low < high:
            middle = (low + high) // 2
            if (fronts[middle].view() >= point).all(axis=1).any():
                low = middle + 1
            else:
                high = middle
        if low == len(fronts):
            fronts.append(_Rows(n_objectives))
        fronts[low].append(point)
        ranks[i] = low
    return ranks[inverse]


def crowding_distance(points: FloatArray) -> FloatArray:
    """Return (n,) how far apart each point's neighbours are, summed over objectives.

    Extremes get infinity. An objective on which all points agree is skipped. Ties are
    broken by position.

    Args:
        points: (n, M) finite values of one front.

    Raises:
        ValueError: `points` is not (n, M) or holds a value that is not finite.

    Source: Deb et al. 2002 (NSGA-II), IEEE TEVC 6(2).
    """
    values = _checked(points)
    n, n_objectives = values.shape
    if n <= 2:
        return np.full(n, np.inf)
    distance = np.zeros(n)
    for m in range(n_objectives):
        order = np.argsort(values[:, m], kind="stable")
        column = values[order, m]
        width = column[-1] - column[0]
        if width <= 0.0:
            continue
        distance[order[1:-1]] += (column[2:] - column[:-2]) / width
        distance[order[[0, -1]]] = np.inf
    return distance


def frozen_reference(values: FloatArray) -> FloatArray:
    """Return (M,) the reference point for a run's hypervolume, from its founders.

    The founders' worst value per objective, less a tenth of their range. Where all
    founders agree the range is taken to be the value's size (1 for zero), so that the
    objective does not wipe out the others' volume.

    Args:
        values: (P, M) objective values of the founders, P >= 1.

    Raises:
        ValueError: There are no founders, or a value is not finite.
    """
    points = _checked(values)
    if not len(points):
        raise ValueError("a reference point needs at least one founder with scores")
    nadir = points.min(axis=0)
    spread = points.max(axis=0) - nadir
    size = np.where(nadir == 0.0, 1.0, np.abs(nadir))
    reference: FloatArray = nadir - 0.1 * np.where(spread > 0.0, spread, size)
    return reference


def hypervolume(points: FloatArray, reference: FloatArray) -> float:
    """Return the exact volume between the reference and the front of `points`.

    Args:
        points: (n, M) finite values, higher is better; M <= 6. A point that is not above
            the reference in every objective adds nothing.
        reference: (M,).

    Raises:
        ValueError: M > 6, the shapes do not fit, or a value is not finite.

    Source: M = 2 and 3 by a sweep; above by the exclusive volumes of While et al. 2012
    (WFG), IEEE TEVC 16(1), each objective sliced off in turn.
    """
    values = _checked(points)
    corner = np.asarray(reference, dtype=np.float64)
    if corner.shape != values.shape[1:] or not np.isfinite(corner).all():
        raise ValueError(
            f"reference must be finite and of shape {values.shape[1:]}, got {reference!r}"
        )
    if values.shape[1] > MAX_OBJECTIVES:
        raise ValueError(
            f"exact hypervolume is computed for at most {MAX_OBJECTIVES} objectives, "
            f"got {values.shape[1]}; merge some objectives by weights"
        )
    heights = values - corner
    return _volume(heights[(heights > 0.0).all(axis=1)])


class FrontArchive:
    """The front so far, updated one candidate at a time.

    Equal values: the first one added stays.
    """

    def __init__(self, reference: FloatArray | None = None, *, n_objectives: int) -> None:
        """Start empty.

        Args:
            reference: (M,) point for `hypervolume`; may be set later, once founders are scored.
            n_objectives: M.
        """
        self._rows = _Rows(n_objectives)
        self._ids: list[int] = []
        self._volume: float | None = None
        self._reference: FloatArray | None = None
        if reference is not None:
            self.set_reference(reference)

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def reference(self) -> FloatArray | None:
        """(M,) reference point of the hypervolume, None until it is known."""
        return self._reference

    def set_reference(self, reference: FloatArray) -> None:
        """Fix the (M,) reference point; ValueError when the shape is wrong or it is not finite."""
        corner = np.array(reference, dtype=np.float64)
        if corner.shape != self._rows.view().shape[1:] or not np.isfinite(corner).all():
            raise ValueError(f"reference must be {self._rows.view().shape[1:]}, got {corner}")
        self._reference = corner
        self._volume = None

    def add(self, candidate_id: int, values: FloatArray) -> bool:
        """Return whether the candidate entered the front (it then threw out what it dominates).

        Args:
            candidate_id: Its id.
            values: (M,) finite objective values.

        Raises:
            ValueError: The shape is wrong or a value is not finite.
        """
        point = np.asarray(values, dtype=np.float64)
        rows = self._rows.view()
        if point.shape != rows.shape[1:] or not np.isfinite(point).all():
            raise ValueError(
                f"candidate {candidate_id}: expected {rows.shape[1]} finite values, got {values!r}"
            )
        if (rows >= point).all(axis=1).any():
            return False
        stays: BoolArray = np.asarray((rows > point).any(axis=1))
        if not stays.all():
            self._rows.keep(stays)
            self._ids = [i for i, kept in zip(self._ids, stays.tolist(), strict=True) if kept]
        self._rows.append(point)
        self._ids.append(int(candidate_id))
        self._volume = None
        return True

    def front(self) -> ParetoFront:
        """Return a copy of the front, by rising candidate id."""
        ids = np.array(self._ids, dtype=np.int64)
        order = np.argsort(ids, kind="stable")
        return ParetoFront(ids[order], self._rows.view()[order])

    def hypervolume(self) -> float | None:
        """Return the front's hypervolume, computed once per change.

        None without a reference, and where it takes too long: above `MAX_OBJECTIVES` objectives,
        or `MAX_MEMBERS` members with more than 4; `estimate_hypervolume` is for those.
        """
        if self._reference is None or len(self._reference) > MAX_OBJECTIVES:
            return None
        if len(self._reference) > 4 and len(self) > MAX_MEMBERS:
            return None
        if self._volume is None:
            self._volume = hypervolume(self._rows.view(), self._reference)
        return self._volume


class _Rows:
    """(F, M) rows in a buffer that doubles."""

    def __init__(self, width: int) -> None:
        self._buffer: FloatArray = np.empty((8, width))
        self._n = 0

    def view(self) -> FloatArray:
        return self._buffer[: self._n]

    def append(self, row: FloatArray) -> None:
        if self._n == len(self._buffer):
            self._buffer = np.concatenate([self._buffer, np.empty_like(self._buffer)])
        self._buffer[self._n] = row
        self._n += 1

    def keep(self, mask: BoolArray) -> None:
        kept = self._buffer[: self._n][mask]
        self._buffer[: len(kept)] = kept
        self._n = len(kept)


def _checked(points: FloatArray) -> FloatArray:
    values = np.asarray(points, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] < 1:
        raise ValueError(f"points must have shape (n, M), got {values.shape}")
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
        raise ValueError(f"point {row} holds a value that is not finite: {values[row]}")
    return values


def _unique_rows(values: FloatArray) -> tuple[FloatArray, IntArray]:
    unique, inverse = np.unique(values + 0.0, axis=0, return_inverse=True)  # -0.0 is 0.0
    return unique, inverse.reshape(-1)


def _volume(heights: FloatArray) -> float:
    """Return the volume of (n, M) positive heights above the origin."""
    if not len(heights):
        return 0.0
    n_objectives = heights.shape[1]
    if n_objectives == 1:
        return float(heights.max())
    front = np.unique(heights[non_dominated_mask(heights)], axis=0)
    if n_objectives == 2:
        wide, high = front[:, 0], front[:, 1]  # wide rises, so high falls
        return float(np.sum(np.diff(wide, prepend=0.0) * high))
    if n_objectives == 3:
        return _volume_3d(front)
    # Slices along the last objective, from the lowest point up: what lies above a point is
    # at least as tall, so its exclusive volume is a volume of one objective less.
    front = front[np.argsort(front[:, -1], kind="stable")]
    base, tall = front[:, :-1], front[:, -1]
    total = 0.0
    for i in range(len(front)):
        exclusive = float(np.prod(base[i])) - _volume(np.minimum(base[i + 1 :], base[i]))
        total += float(tall[i]) * exclusive
    return total


def _volume_3d(front: FloatArray) -> float:
    """Return the volume of a (n, 3) front: sweep down the last axis over a growing staircase."""
    order = np.argsort(-front[:, 2], kind="stable")
    rows = front[order].tolist()
    xs: list[float] = []  # staircase: x rises, y falls
    ys: list[float] = []
    area = total = 0.0
    for i, (x, y, z) in enumerate(rows):
        at = bisect_left(xs, x)
        if at == len(xs) or ys[at] < y:
            stop = at + 1 if at < len(xs) and xs[at] == x else at
            start = at
            while start > 0 and ys[start - 1] <= y:
                start -= 1
            # Steps start..stop-1 disappear under the new one: add what sticks out of them.
            left = xs[start - 1] if start > 0 else 0.0
            gained = (x - left) * y
            for j in range(start, at):
                gained -= (xs[j] - left) * ys[j]
                left = xs[j]
            gained -= (x - left) * (ys[at] if at < len(xs) else 0.0)
            area += gained
            xs[start:stop] = [x]
            ys[start:stop] = [y]
        below = rows[i + 1][2] if i + 1 < len(rows) else 0.0
        total += area * (z - below)
    return total
