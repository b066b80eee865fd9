"""What a second look at the best candidates says: shrunken values, and who beats a parent.

The best of many noisy values is too high on average (the winner's curse). Finalists are scored
again on examples that did not choose them; the best of those values is again a little too high,
which `shrunken` takes off.

Shapes: P finalists, N examples of a task, M objectives.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist

import numpy as np

from evomerge.core.arrays import FloatArray, ScoreArray
from evomerge.core.confidence import standard_errors
from evomerge.core.objective import Objective


def shrunken(scores: Mapping[str, ScoreArray], objectives: Sequence[Objective]) -> FloatArray:
    """Return (P, M) values drawn towards the finalists' mean by as much as they are noise.

    mu + tau^2 / (tau^2 + sd^2) (x - mu), where mu is the mean of the values x, sd the standard
    error of each one's difference from that mean, example by example (all saw the same examples,
    so what is hard for all of them is no noise here), and tau^2 what is left of the values'
    variance when the mean of sd^2 is taken off, at least 0.

    Args:
        scores: Task -> (P, N) per-example scores, rows of the same candidates.
        objectives: The M objectives.

    Source: algorithms.md §8 (6); James & Stein 1961; tau^2 by the method of moments.
    """
    tables = {task: table.astype(np.float64) for task, table in scores.items()}
    values = np.array(
        [
            [item.value({task: table[i] for task, table in tables.items()}) for item in objectives]
            for i in range(len(next(iter(tables.values()))))
        ]
    )
    if len(values) < 2:
        return values
    apart = {task: table - table.mean(axis=0) for task, table in tables.items()}
    noise = np.square(standard_errors(apart, objectives))
    mean = values.mean(axis=0)
    real = np.maximum(values.var(axis=0, ddof=1) - noise.mean(axis=0), 0.0)
    total = real + noise
    kept = np.divide(real, total, out=np.ones_like(total), where=total > 0.0)
    result: FloatArray = mean + kept * (values - mean)
    return result


def chance_of_no_gain(
    better: Mapping[str, ScoreArray], than: Mapping[str, ScoreArray], objective: Objective
) -> float:
    """Return the p-value of "not better" on one objective, one-sided and paired.

    The exact sign test where the objective is one task of two-valued scores, else the normal test
    of the mean difference, right from some thirty examples on.

    Args:
        better: Task -> (N,) scores of the candidate.
        than: Task -> (N,) scores of the one it is compared with, on the same examples.
        objective: What is compared.

    Source: Dietterich 1998; McNemar 1947, the exact form.
    """
    total = sum(objective.weights.values())
    gaps = {
        task: better[task].astype(np.float64) - than[task].astype(np.float64)
        for task in objective.weights
    }
    if len(gaps) == 1:
        gap = next(iter(gaps.values()))
        both = np.concatenate([better[next(iter(gaps))], than[next(iter(gaps))]])
        if np.isin(both, (both.min(), both.max())).all():
            return _sign_test(int((gap > 0.0).sum()), int((gap < 0.0).sum()))
    mean, variance = 0.0, 0.0
    for task, gap in gaps.items():
        share = objective.weights[task] / total
        mean += share * float(gap.mean())
        if len(gap) < 2:
            return 1.0  # one example proves nothing
        variance += share**2 * float(gap.var(ddof=1)) / len(gap)
    if variance == 0.0:
        return 0.0 if mean > 0.0 else 1.0
    return 1.0 - NormalDist().cdf(mean / math.sqrt(variance))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values that hold together: the chance of even one false claim is kept.

    Source: Holm 1979, Scandinavian Journal of Statistics 6(2).
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [1.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def _sign_test(wins: int, losses: int) -> float:
    """Return P(at least so many wins) if wins and losses were equally likely."""
    n = wins + losses
    tail: float = sum(math.comb(n, k) for k in range(wins, n + 1)) / 2**n
    return tail
