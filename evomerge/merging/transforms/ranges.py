"""Checking a transform's settings: their types, and that numbers lie where it is defined."""

from __future__ import annotations

from typing import Any

from evomerge.errors import ConfigError
from evomerge.merging.parameters import check_fields


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


def check_settings(transform: Any, /, **ranges: tuple[float, float]) -> None:
    """Check the types of a transform's settings, and that numbers lie in their ranges.

    Args:
        transform: An instance of a transform dataclass.
        ranges: Lowest and highest legal value, by name of the setting.

    Raises:
        ConfigError: Names the setting, its value and what is allowed.
    """
    check_fields(transform)
    for name, (low, high) in ranges.items():
        check_range(transform, name, low, high)
