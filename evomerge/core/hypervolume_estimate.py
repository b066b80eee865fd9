"""Hypervolume of many objectives by sampling, with a confidence interval.

Shapes: n points, M objectives, all maximised.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from evomerge.core.arrays import FloatArray

_CHUNK = 2048  # samples compared with all points at a time


@dataclass(frozen=True)
class VolumeEstimate:
    """An estimate and its 95 % confidence interval."""

    value: float
    low: float
    high: float


def estimate_hypervolume(
    points: FloatArray,
    reference: FloatArray,
    rng: np.random.Generator,
    *,
    n_samples: int = 20_000,
) -> VolumeEstimate:
    """Return an unbiased estimate of the volume between the reference and the front of `points`.

    A point's box is drawn in proportion to its volume, then a place in it; a place that c boxes
    cover counts 1 / c. The relative error does not grow with M, unlike that of places drawn
    from the bounding box, few of which hit the volume at all. Takes O(n_samples n M) time.

    Args:
        points: (n, M) finite values. Points not above the reference everywhere add nothing.
        reference: (M,) finite.
        rng: The only source of randomness.
        n_samples: Places to look at, at least 2.

    Raises:
        ValueError: The shapes do not fit, a value is not finite, or `n_samples` is below 2.

    Source: Karp & Luby 1983; Bringmann & Friedrich 2010, Comput. Geom. 43(6-7).
    """
    values = np.asarray(points, dtype=np.float64)
    corner = np.asarray(reference, dtype=np.float64)
    if values.ndim != 2 or corner.shape != values.shape[1:]:
        raise ValueError(f"points of shape {values.shape}, reference of shape {corner.shape}")
    if not (np.isfinite(values).all() and np.isfinite(corner).all()):
        raise ValueError("points and reference must be finite")
    if n_samples < 2:
        raise ValueError(f"n_samples must be at least 2, is {n_samples}")
    heights = values - corner
    heights = np.unique(heights[(heights > 0.0).all(axis=1)], axis=0)
    if not len(heights):
        return VolumeEstimate(0.0, 0.0, 0.0)
    volumes = heights.prod(axis=1)
    total = float(volumes.sum())
    chosen = rng.choice(len(heights), size=n_samples, p=volumes / total)
    places = rng.random((n_samples, heights.shape[1])) * heights[chosen]
    worth = np.empty(n_samples)
    for start in range(0, n_samples, _CHUNK):
        part = places[start : start + _CHUNK]
        covered = (part[:, None, :] <= heights[None, :, :]).all(axis=2)
        worth[start : start + _CHUNK] = 1.0 / covered.sum(axis=1)
    mean = float(worth.mean())
    margin = NormalDist().inv_cdf(0.975) * float(worth.std(ddof=1)) / n_samples**0.5
    largest = float(volumes.max())  # the volume holds its largest box, and fits into them all
    return VolumeEstimate(
        total * mean,
        max(total * (mean - margin), min(largest, total * mean)),
        min(total * (mean + margin), total),
    )
