"""Asked and not yet told: finds what an algorithm remembered about a recipe when it was asked."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from evomerge.core.recipe import Recipe

T = TypeVar("T")


class Pending(Generic[T]):
    """What was asked and is not told yet, by recipe; equal recipes are told in order of ask."""

    def __init__(self) -> None:
        self._entries: dict[str, deque[T]] = {}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def put(self, recipe: Recipe, entry: T) -> None:
        """Remember `entry` until an evaluation of `recipe` is told."""
        self._entries.setdefault(recipe.digest(), deque()).append(entry)
        self._length += 1

    def pop(self, recipe: Recipe, fits: Callable[[T], bool] = lambda _: True) -> T | None:
        """Return and forget the oldest entry of `recipe` that fits; None when there is none."""
        key = recipe.digest()
        waiting = self._entries.get(key, deque())
        place = next((place for place, entry in enumerate(waiting) if fits(entry)), None)
        if place is None:
            return None
        entry = waiting[place]
        del waiting[place]
        self._length -= 1
        if not waiting:
            del self._entries[key]
        return entry
