"""Numbers of evaluations as people want to see them."""

from __future__ import annotations


def shown_count(count: float) -> float | int:
    """Return a number of evaluations as people want to see it: 12, or 12.3."""
    return int(count) if count == int(count) else round(count, 1)
