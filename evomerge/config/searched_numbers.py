"""The searched numbers of recipes, with names and ranges for people and other tools.

Shapes: G groups of tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evomerge.config.merge_choice import ANY_OF
from evomerge.config.recipe_columns import group_labels, labelled_columns
from evomerge.core.choice_space import METHOD
from evomerge.core.recipe import SEGMENTS, Recipe
from evomerge.merging.layer_scale import PREFIX
from evomerge.trackers.tracker import Parameter

MAX_NUMBERS = 64  # more than this says nothing to the eye, and slows every tool down
OTHER_METHOD = "other"  # of founders, where the method is searched

Range = tuple[float, float]


class SearchedNumbers:
    """Names what a recipe says about the parameters that a run searches."""

    def __init__(self, merge: Mapping[str, Any], tensors: Sequence[str]) -> None:
        """Args: merge: a resolved `merge:` section; tensors: names of the merged ones, in order."""
        entries: Sequence[Mapping[str, Any]] = merge.get(ANY_OF, [merge])
        self._tensors = list(tensors)
        self._groups: dict[tuple[str, int], list[str]] = {}
        self._methods = tuple(dict.fromkeys(str(entry["name"]) for entry in entries))
        self._ranges: dict[str, dict[str, Range]] = {}
        for entry in entries:
            known = self._ranges.setdefault(str(entry["name"]), {})
            for name, (low, high) in _ranges(entry).items():
                before = known.get(name, (low, high))
                known[name] = (min(low, before[0]), max(high, before[1]))

    def of(self, recipe: Recipe) -> tuple[Parameter, ...]:
        """Return the searched numbers of a recipe.

        One per group and source; where these are more than `MAX_NUMBERS`, or the groups differ
        from recipe to recipe, the mean over the model per source. A range is widened by what a
        founder has outside of it. Layer sequences have none.
        """
        found = [
            (label, values, self._range(recipe, parameter))
            for parameter, label, values in labelled_columns(recipe)
            if parameter in self._ranges.get(recipe.operator, {})
        ]
        shares = None if recipe.breaks is None else np.diff(recipe.breaks)
        many = sum(len(values) for _, values, _ in found) > MAX_NUMBERS
        numbers: list[tuple[str, float, Range]] = []
        if many or recipe.grouping == SEGMENTS:
            numbers = [
                (f"{label} (mean)", float(np.average(values, weights=shares)), reach)
                for label, values, reach in found
            ]
        elif found:
            groups = self._labels(recipe)
            numbers = [
                (f"{label}/{group}" if len(groups) > 1 else label, float(value), reach)
                for label, values, reach in found
                for group, value in zip(groups, values, strict=True)
            ]
        return self._choice(recipe) + tuple(
            Parameter(name, value, min(low, value), max(high, value))
            for name, value, (low, high) in numbers
        )

    def _labels(self, recipe: Recipe) -> list[str]:
        key = (recipe.grouping, recipe.n_groups)
        if key not in self._groups:
            self._groups[key] = group_labels(recipe, self._tensors)
        return self._groups[key]

    def _range(self, recipe: Recipe, parameter: str) -> Range:
        return self._ranges[recipe.operator][parameter]

    def _choice(self, recipe: Recipe) -> tuple[Parameter, ...]:
        if len(self._methods) < 2:
            return ()
        chosen = recipe.operator if recipe.operator in self._methods else OTHER_METHOD
        return (Parameter(METHOD, chosen, choices=(*self._methods, OTHER_METHOD)),)


def _ranges(entry: Mapping[str, Any], prefix: str = "") -> dict[str, Range]:
    """Return parameter -> range of what one method's section has searched."""
    found: dict[str, Range] = {}
    for key, value in entry.items():
        if isinstance(value, Mapping) and {"low", "high"} <= set(value):
            found[prefix + key] = (float(value["low"]), float(value["high"]))
        elif isinstance(value, Mapping) and f"{key}." == PREFIX:
            found |= _ranges(value, PREFIX)
    return found
