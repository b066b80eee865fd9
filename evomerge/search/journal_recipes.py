"""JournalRecipes: the recipes of a journal's candidates, with those of their ancestors.

An ancestor is an earlier candidate, so that its recipe stands in a line of its own; a line repeats
only what no earlier one has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from evomerge.core.ancestry import ancestor_name
from evomerge.core.recipe import Recipe

_KEY = "ancestors"


class JournalRecipes:
    """Reads recipes that leave out what other lines of one journal have."""

    def __init__(self, lines: Iterable[tuple[str, Any]]) -> None:
        """Args: lines: Digest and JSON recipe of every line; they are read when they are needed."""
        self._bodies: dict[str, Any] = {}
        self._known: dict[str, Recipe] = {}
        for digest, body in lines:
            name = ancestor_name(digest)
            if isinstance(body, Mapping) and isinstance(body.get(_KEY), Mapping):
                self._bodies |= body[_KEY]
                body = {key: value for key, value in body.items() if key != _KEY}
            self._bodies[name] = body

    @classmethod
    def of_events(cls, events: Iterable[Mapping[str, Any]]) -> JournalRecipes:
        """Return the reader of a journal's events."""
        asked = (event for event in events if event["kind"] == "asked")
        return cls((str(event["digest"]), event["recipe"]) for event in asked)

    def read(self, body: Mapping[str, Any], where: str) -> Recipe:
        """Return the recipe of one line, whole.

        Raises:
            ConfigError: It is malformed, or a line that has an ancestor is damaged or missing.
        """
        whole = {**body, _KEY: self._bodies} if isinstance(body, Mapping) else body
        recipe = Recipe.from_json(whole, where=where, known=self._known)
        self._known |= recipe.closure(self._known)
        return recipe
