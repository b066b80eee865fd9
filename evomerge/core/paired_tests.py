"""Is one candidate worse than another, by some of the examples that both are scored on?

Shapes: n examples of N.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from statistics import NormalDist

import numpy as np

from evomerge.core.arrays import FloatArray


def by_normal(differences: FloatArray, n_total: int, confidence: float) -> bool:
    """Return whether the mean difference is below 0, by its standard error.

    Right when there are some thirty examples or more. The n examples are drawn from N without
    replacement, so the error shrinks to 0 as n comes near N.

    Args:
        differences: (n,) score of one minus score of the other.
        n_total: N.
        confidence: Of the one-sided test, in (0.5, 1).
    """
    n = len(differences)
    if n < 2:
        return False
    spread = float(differences.std(ddof=1)) / math.sqrt(n) * math.sqrt(1.0 - n / n_total)
    return float(differences.mean()) + NormalDist().inv_cdf(confidence) * spread < 0.0


def by_bernstein(differences: FloatArray, n_total: int, confidence: float) -> bool:
    """Return whether the mean difference is below 0, at whatever n it is looked at.

    The empirical Bernstein bound holds for any bounded scores and all looks together; it asks for
    many more examples than the other tests. Differences lie in [-1, 1] times the largest weight.

    Source: Mnih 2008 (EBStop), Audibert 2009; algorithms.md §8, with looks at doubled sizes.
    """
    del n_total
    n = len(differences)
    if n < 2:
        return False
    span = 2.0 * float(np.abs(differences).max())
    look = max(1.0, math.log2(n))
    delta = (1.0 - confidence) / (look * (look + 1.0))
    term = math.log(3.0 / delta)
    slack = math.sqrt(2.0 * float(differences.var()) * term / n) + 3.0 * span * term / n
    return float(differences.mean()) + slack < 0.0


def by_wilcoxon(differences: FloatArray, n_total: int, confidence: float) -> bool:
    """Return whether differences lean below 0 by Wilcoxon's signed ranks, ties averaged.

    Source: Wilcoxon 1945; normal approximation with the tie correction.
    """
    del n_total
    unequal = differences[differences != 0.0]
    n = len(unequal)
    if n < 6:
        return False
    sizes, inverse, counts = np.unique(np.abs(unequal), return_inverse=True, return_counts=True)
    del sizes
    last = np.cumsum(counts)
    ranks = (last - (counts - 1) / 2.0)[inverse]
    above = float(ranks[unequal > 0.0].sum())
    mean = n * (n + 1) / 4.0
    variance = n * (n + 1) * (2 * n + 1) / 24.0 - float((counts**3 - counts).sum()) / 48.0
    return (above + 0.5 - mean) / math.sqrt(variance) < -NormalDist().inv_cdf(confidence)


def by_mcnemar(differences: FloatArray, n_total: int, confidence: float) -> bool:
    """Return whether more examples got worse than better than chance allows; exact.

    For right / wrong scores of one task: how much an example weighs is not looked at.

    Source: McNemar 1947, the exact binomial form.
    """
    del n_total
    worse, better = int((differences < 0.0).sum()), int((differences > 0.0).sum())
    n = worse + better
    tail: float = sum(math.comb(n, k) for k in range(better + 1)) / 2**n
    return tail < 1.0 - confidence


PairedTest = Callable[[FloatArray, int, float], bool]

PAIRED_TESTS: Mapping[str, PairedTest] = {
    "normal": by_normal,
    "bernstein": by_bernstein,
    "wilcoxon": by_wilcoxon,
    "mcnemar": by_mcnemar,
}
