"""Ancestors: sources of a recipe that stand for what an earlier candidate's recipe computes.

A source called ``ancestor:<16 hex digits>`` is the model, in float32, of the recipe of that digest.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from evomerge.core.noise import noise_seed
from evomerge.errors import ConfigError

_NAME = re.compile(r"ancestor:[0-9a-f]{16}")


def ancestor_name(digest: str) -> str:
    """Return the source id of what a recipe of this digest computes."""
    return f"ancestor:{digest}"


def is_ancestor(source: str) -> bool:
    """Return whether a source id stands for what another recipe computes."""
    return _NAME.fullmatch(source) is not None


def is_made(source: str) -> bool:
    """Return whether a source id is no model on disk: an ancestor, or noise."""
    return is_ancestor(source) or noise_seed(source) is not None


def oldest_first(names: Iterable[str], needs: Callable[[str], Iterable[str]]) -> list[str]:
    """Return names and all that they need, each after what it needs; lineages may be very long.

    Args:
        names: What is wanted.
        needs: Name -> what it needs itself; asked twice at most.

    Raises:
        ConfigError: Something needs itself.
    """
    order: dict[str, None] = {}
    opened: set[str] = set()
    stack = list(names)
    while stack:
        name = stack[-1]
        if name in order:
            stack.pop()
            continue
        missing = [need for need in needs(name) if need not in order]
        if not missing:
            order[name] = None
        elif name in opened:
            raise ConfigError(f"{name} is an ancestor of itself")
        opened.add(name)
        stack += missing
    return list(order)
