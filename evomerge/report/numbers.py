"""Numbers as JSON has them: few digits, nothing that is not finite."""

from __future__ import annotations

import math
from collections.abc import Iterable

DIGITS = 5  # significant: finer than the noise of 10,000 examples


def short(value: float | None) -> float | None:
    """Return a number with `DIGITS` significant digits; None for None, NaN and infinities."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{float(value):.{DIGITS}g}")


def shorts(values: Iterable[float]) -> list[float | None]:
    """Return `short` of every value."""
    return [short(float(value)) for value in values]
