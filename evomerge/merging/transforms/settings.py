"""Checking types and closed ranges of a delta transform's settings in one call."""

from __future__ import annotations

from typing import Any

from evomerge.merging.parameters import check_fields
from evomerge.merging.transforms.ranges import check_range


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
