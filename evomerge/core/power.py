"""What a number of examples can tell apart.

Two candidates are scored on the same n examples. Their mean difference has the standard error
s / sqrt(n), where s is the standard deviation of the differences example by example; it is told
from 0 in a two-sided test at `CONFIDENCE` with probability `POWER` when it is as large as

    (z_{(1 + CONFIDENCE) / 2} + z_{POWER}) s / sqrt(n)

Source: Dietterich 1998 (paired tests); Miller 2024, arXiv:2411.00640, section 5 (power).
"""

from __future__ import annotations

import math
from statistics import NormalDist

CONFIDENCE = 0.95
POWER = 0.8
_Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) + NormalDist().inv_cdf(POWER)


def detectable_difference(spread: float, n: int) -> float:
    """Return the smallest mean difference that n examples tell apart.

    Args:
        spread: Standard deviation of the differences, in units of scores.
        n: Number of examples, at least 1.
    """
    return _Z * spread / math.sqrt(n)


def examples_needed(spread: float, difference: float) -> int:
    """Return how many examples tell a mean difference apart, at least 2.

    Args:
        spread: Standard deviation of the differences, in units of scores.
        difference: What is to be told apart, above 0.
    """
    return max(2, math.ceil((_Z * spread / difference) ** 2))
