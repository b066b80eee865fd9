"""Which candidates are really beaten: dominance that the per-example scores support.

Two candidates are scored on the same examples, so their difference is judged pair by pair:
far sharper than comparing two means with two error bars.

Shapes: P candidates, N examples of a task.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist

import numpy as np

from evomerge.core.arrays import BoolArray, FloatArray, IntArray, ScoreArray
from evomerge.core.objective import Objective

_CHUNK = 256  # rows of the P x P tables held at a time


def unbeaten(
    scores: Mapping[str, ScoreArray], objectives: Sequence[Objective], confidence: float
) -> BoolArray:
    """Return (P,) True where no other candidate is better on every objective with confidence.

    i beats j when, for each objective, the probability that i is truly better is at least
    `confidence` by a one-sided paired test: the exact sign test where an objective is one task
    of two-valued scores (right or wrong), else the normal one on the mean difference. All others
    cannot be told apart. The Pareto front need not be unbeaten, nor the other way round.

    Args:
        scores: Task -> (P, N) per-example scores, rows of the same candidates.
        objectives: What is compared.
        confidence: In (0.5, 1), 1 - delta.

    Raises:
        ValueError: `confidence` is outside its range.

    Source: algorithms.md §9 (probabilistic dominance); Dietterich 1998 on paired tests.
    """
    if not 0.5 < confidence < 1.0:
        raise ValueError(f"confidence must be between 0.5 and 1, is {confidence}")
    tests = [_test(scores, objective, confidence) for objective in objectives]
    n = len(next(iter(scores.values())))
    result = np.ones(n, dtype=np.bool_)
    for start in range(0, n, _CHUNK):
        rows = np.arange(start, min(start + _CHUNK, n))
        beats: BoolArray = np.ones((len(rows), n), dtype=np.bool_)
        for test in tests:
            beats &= test.beats(rows)
        result &= ~beats.any(axis=0)
    return result


def standard_errors(
    scores: Mapping[str, ScoreArray], objectives: Sequence[Objective]
) -> FloatArray:
    """Return (P, M) the standard error of every objective value, over the draw of examples.

    Tasks of a single example have none, and count as exact.

    Args:
        scores: Task -> (P, N) per-example scores.
        objectives: The M objectives.
    """
    columns = []
    for objective in objectives:
        total = sum(objective.weights.values())
        variance = sum(
            (weight / total) ** 2 * _variance_of_mean(scores[task].astype(np.float64))
            for task, weight in objective.weights.items()
        )
        columns.append(np.sqrt(variance))
    return np.stack(columns, axis=1)


def _variance_of_mean(table: FloatArray) -> FloatArray:
    n = table.shape[1]
    if n < 2:
        return np.zeros(len(table))
    result: FloatArray = table.var(axis=1, ddof=1) / n
    return result


class _SignTest:
    """Wins against losses on the examples where two candidates differ."""

    def __init__(self, right: FloatArray, confidence: float) -> None:
        """Args: right: (P, N) zeros and ones."""
        self._right, self._wrong = right, 1.0 - right
        self._needed = _needed_wins(right.shape[1], 1.0 - confidence)

    def beats(self, rows: IntArray) -> BoolArray:
        wins = (self._right[rows] @ self._wrong.T).round().astype(np.int64)
        losses = (self._wrong[rows] @ self._right.T).round().astype(np.int64)
        result: BoolArray = wins >= self._needed[wins + losses]
        return result


class _NormalTest:
    """Mean paired difference against its standard error."""

    def __init__(self, parts: Sequence[tuple[float, FloatArray]], confidence: float) -> None:
        """Args: parts: (share, (P, N) scores) of every task of the objective."""
        self._z = NormalDist().inv_cdf(confidence)
        self._means = sum(share * table.mean(axis=1) for share, table in parts)
        self._centred = []
        for share, table in parts:
            n = table.shape[1]
            scale = share / math.sqrt(n * (n - 1)) if n > 1 else math.inf
            self._centred.append((scale, table - table.mean(axis=1, keepdims=True)))

    def beats(self, rows: IntArray) -> BoolArray:
        variance = np.zeros((len(rows), len(self._centred[0][1])))
        for scale, table in self._centred:
            if not math.isfinite(scale):
                return np.zeros(variance.shape, dtype=np.bool_)  # one example proves nothing
            part = table * scale
            squares = np.einsum("pn,pn->p", part, part)
            variance += squares[rows, None] + squares[None, :] - 2.0 * (part[rows] @ part.T)
        gap = np.subtract.outer(np.asarray(self._means)[rows], self._means)
        result: BoolArray = (gap > 0.0) & (gap >= self._z * np.sqrt(np.maximum(variance, 0.0)))
        return result


def _test(
    scores: Mapping[str, ScoreArray], objective: Objective, confidence: float
) -> _SignTest | _NormalTest:
    total = sum(objective.weights.values())
    parts = [
        (weight / total, scores[task].astype(np.float64))
        for task, weight in objective.weights.items()
    ]
    if len(parts) == 1:
        table = parts[0][1]
        low, high = table.min(), table.max()
        if ((table == low) | (table == high)).all():
            return _SignTest((table > low).astype(np.float64), confidence)
    return _NormalTest(parts, confidence)


def _needed_wins(n_examples: int, delta: float) -> IntArray:
    """Return (N + 1,) the fewest wins among n differing examples that chance gives with p <= delta.

    n + 1, which cannot be reached, where even n wins prove nothing.
    """
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n_examples + 1)))])
    needed = np.empty(n_examples + 1, dtype=np.int64)
    for n in range(n_examples + 1):
        k = np.arange(n + 1)
        log_chance = log_factorial[n] - log_factorial[k] - log_factorial[n - k] - n * math.log(2.0)
        at_least = np.cumsum(np.exp(log_chance)[::-1])[::-1]  # P(wins >= k), falling
        needed[n] = np.count_nonzero(at_least > delta * (1.0 + 1e-9))
    return needed
