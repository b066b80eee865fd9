"""Bootstrap intervals of objectives, and of differences between candidates.

Shapes: P candidates, N examples of a task, M objectives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evomerge.core.arrays import FloatArray, ScoreArray
from evomerge.core.objective import Objective

RESAMPLES = 2000
LEVEL = 0.95
_CHUNK = 100  # resamples drawn at a time: (100, N) counts


@dataclass(frozen=True, eq=False)
class Resampled:
    """Objective values over resamples of the examples, the same ones for all candidates.

    Attributes:
        values: (RESAMPLES, P, M) objective values of every resample.
    """

    values: FloatArray

    def interval(self, row: int, objective: int) -> tuple[float, float]:
        """Return the percentile interval of one candidate's objective."""
        return _percentiles(self.values[:, row, objective])

    def difference(self, row: int, other: int, objective: int) -> tuple[float, float]:
        """Return the interval of `row` minus `other`, paired: both saw the same examples."""
        return _percentiles(self.values[:, row, objective] - self.values[:, other, objective])

    def with_mean(self) -> Resampled:
        """Return the same with one more column: the mean of the objectives."""
        return Resampled(np.append(self.values, self.values.mean(axis=2, keepdims=True), axis=2))


def resample(
    scores: Mapping[str, ScoreArray], objectives: Sequence[Objective], rng: np.random.Generator
) -> Resampled:
    """Return the objectives over draws of each task's examples with replacement.

    Args:
        scores: Task -> (P, N) per-example scores, rows of the same candidates.
        objectives: The M objectives.
        rng: The only source of randomness.

    Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, §13 (percentiles).
    """
    means = {task: _resampled_means(table, rng) for task, table in sorted(scores.items())}
    columns = []
    for objective in objectives:
        total = sum(objective.weights.values())
        columns.append(
            sum(weight / total * means[task] for task, weight in objective.weights.items())
        )
    return Resampled(np.stack(columns, axis=2))


def _resampled_means(table: ScoreArray, rng: np.random.Generator) -> FloatArray:
    """Return (RESAMPLES, P) means of (P, N) scores."""
    values = table.astype(np.float64)
    n = values.shape[1]
    even = np.full(n, 1.0 / n)
    parts = [
        rng.multinomial(n, even, size=_CHUNK) @ values.T / n for _ in range(RESAMPLES // _CHUNK)
    ]
    means: FloatArray = np.concatenate(parts)
    return means


def _percentiles(values: FloatArray) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
