"""Asked and not yet told: finds what an algorithm remembered about a recipe when it was asked."""

from __future__ import annotations

import hashlib
from collections import deque
from typing import Generic, TypeVar

import numpy as np

from evomerge.core.recipe import Recipe, canonical_json

T = TypeVar("T")


def recipe_key(recipe: Recipe) -> bytes:
    """Return 16 bytes that are equal for equal recipes, without spelling out their JSON.

    Says the same as `Recipe.digest`, but hashes the arrays' bytes: a recipe of 200 segments
    takes microseconds instead of a millisecond.
    """
    head = (recipe.operator, recipe.sources, recipe.grouping, canonical_json(recipe.settings))
    hasher = hashlib.blake2b(repr(head).encode(), digest_size=16)
    for name, value in recipe.params.items():
        hasher.update(f"{name}{value.shape}".encode())
        hasher.update(np.ascontiguousarray(value, dtype="<f8").tobytes())
    if recipe.breaks is not None:
        hasher.update(np.ascontiguousarray(recipe.breaks, dtype="<i8").tobytes())
    return hasher.digest()


class Pending(Generic[T]):
    """What was asked and is not told yet, by recipe; equal recipes are told in order of ask."""

    def __init__(self) -> None:
        self._entries: dict[bytes, deque[T]] = {}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def put(self, recipe: Recipe, entry: T) -> None:
        """Remember `entry` until an evaluation of `recipe` is told."""
        self._entries.setdefault(recipe_key(recipe), deque()).append(entry)
        self._length += 1

    def pop(self, recipe: Recipe) -> T | None:
        """Return and forget the oldest entry of `recipe`; None when it was never asked."""
        key = recipe_key(recipe)
        waiting = self._entries.get(key)
        if waiting is None:
            return None
        entry = waiting.popleft()
        self._length -= 1
        if not waiting:
            del self._entries[key]
        return entry
