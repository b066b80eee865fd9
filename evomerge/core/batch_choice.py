"""Which of many candidate points to score next: spread along the front, or least known.

Shapes: p candidate points, k chosen, D dimensions, M objectives.
"""

from __future__ import annotations

import numpy as np

from evomerge.core.arrays import BoolArray, FloatArray, IntArray
from evomerge.core.pareto_surrogate import ParetoSurrogate


def spread_along_front(values: FloatArray, anchors: FloatArray, n: int) -> IntArray:
    """Return (k,) rows of (p, M) values, each the farthest from the anchors and earlier ones.

    Args:
        values: (p, M) expected objectives, in comparable units.
        anchors: (a, M) values that are taken already, a >= 1.
        n: Most rows to return; k = min(n, p).
    """
    gap = np.linalg.norm(values[:, None] - anchors[None], axis=2).min(axis=1)
    chosen: list[int] = []
    for _ in range(min(n, len(values))):
        row = int(gap.round(9).argmax())  # the last bits differ between machines
        chosen.append(row)
        gap = np.minimum(gap, np.linalg.norm(values - values[row], axis=1))
        gap[row] = -np.inf
    return np.array(chosen, dtype=np.int64)


def least_known(surrogate: ParetoSurrogate, points: FloatArray, n: int) -> IntArray:
    """Return (k,) rows of (p, D) points, each the most uncertain once the earlier are known.

    Uncertainty is the posterior variance summed over objectives, in units of their measured
    range squared. A chosen point counts as measured for those after it, whatever it will score:
    the variance of a linearised quadratic does not depend on that.
    """
    covariances = []
    noises = []
    for part, width in zip(surrogate.parts, surrogate.scale, strict=True):
        covariances.append(part.covariance(part.gradients(points)) / width**2)
        noises.append(part.noise / width**2)
    left: BoolArray = np.ones(len(points), dtype=np.bool_)
    chosen: list[int] = []
    for _ in range(min(n, len(points))):
        total = np.sum([np.diag(covariance) for covariance in covariances], axis=0)
        row = int(np.where(left, total, -np.inf).round(12).argmax())
        chosen.append(row)
        left[row] = False
        for covariance, noise in zip(covariances, noises, strict=True):
            column = covariance[:, row].copy()
            covariance -= np.outer(column, column) / (max(column[row], 0.0) + noise)
    return np.array(chosen, dtype=np.int64)


def far_enough(points: FloatArray, others: FloatArray, tolerance: float) -> BoolArray:
    """Return (p,) True where no row of `others` is within `tolerance` in every dimension."""
    if not len(others):
        return np.ones(len(points), dtype=np.bool_)
    away = np.abs(points[:, None] - others[None]).max(axis=2).min(axis=1)
    enough: BoolArray = away > tolerance
    return enough
