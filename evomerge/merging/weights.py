"""Turning weights into coefficients without blowing them up."""

from __future__ import annotations

import math
from collections.abc import Sequence

from evomerge.errors import ConfigError

# Relative to the sum of absolute weights: below this, a quotient amplifies rounding 1e8 times.
_SMALLEST_SUM = 1e-8


def normalized(weights: Sequence[float], *, operator: str) -> tuple[float, ...]:
    """Return weights divided by their sum; a lone weight becomes exactly 1.

    Args:
        weights: (n,) any signs.
        operator: Name for the message.

    Raises:
        ConfigError: The weights cancel or are all zero, so that their quotient is arbitrary.
    """
    total = math.fsum(weights)
    size = math.fsum(abs(weight) for weight in weights)
    if abs(total) <= _SMALLEST_SUM * size:
        raise ConfigError(
            f"{operator}: the weights {[float(f'{w:.4g}') for w in weights]} sum to {total:.3g}, "
            "and `normalize` would divide by that. Keep the weights away from cancelling "
            "(a range without negative values), or set `normalize: false`."
        )
    return tuple(weight / total for weight in weights)


def over_base(scales: Sequence[float]) -> tuple[float, ...]:
    """Return (K,) coefficients over (base, experts) of base + sum_k scales[k] * delta_k."""
    return (1.0 - math.fsum(scales), *scales)
