"""Checking that a transform's numbers lie where its formula is defined."""

from __future__ import annotations

from typing import Any

from evomerge.errors import ConfigError


def check_range(
    transform: Any,
    field: str,
    low: float,
    high: float,
    *,
    open_low: bool = False,
) -> None:
    """Check that a numeric field lies in [low, high], or in (low, high] with `open_low`.

    Raises:
        ConfigError: The field is no number, not a number (nan) or outside the range.
    """
    value = getattr(transform, field)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if is_number and (low < value if open_low else low <= value) and value <= high:
        return
    bracket = "(" if open_low else "["
    raise ConfigError(
        f"{type(transform).__name__}.{field} is {value!r}, must be in {bracket}{low:g}, {high:g}]"
    )
