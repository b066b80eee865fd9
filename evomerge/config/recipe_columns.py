"""A recipe's parameters as labelled columns over its groups. Shapes: G groups of tensors."""

from __future__ import annotations

import json
from collections.abc import Sequence

from evomerge.core.arrays import FloatArray
from evomerge.core.grouping import assign_groups
from evomerge.core.recipe import SEGMENTS, Recipe
from evomerge.errors import ConfigError, RunError
from evomerge.storage.run_store import RunFolder


def labelled_columns(recipe: Recipe, separator: str = "/") -> list[tuple[str, str, FloatArray]]:
    """Return (parameter, label, (G,) values) of every parameter, one per source where it has many.

    Args:
        recipe: A recipe.
        separator: Between parameter and source in a label.
    """
    found: list[tuple[str, str, FloatArray]] = []
    for name, value in recipe.params.items():
        if value.ndim == 1:
            found.append((name, name, value))
            continue
        sources = recipe.sources[len(recipe.sources) - value.shape[1] :]
        for index in range(value.shape[1]):
            of = sources[index] if index < len(sources) else str(index)
            found.append((name, f"{name}{separator}{of}", value[:, index]))
    return found


def group_labels(recipe: Recipe, tensors: Sequence[str]) -> list[str]:
    """Return (G,) labels; numbers where `tensors`, the merged ones in order, do not fit."""
    n_groups = recipe.n_groups
    if recipe.grouping == SEGMENTS:
        return [f"segment {i}" for i in range(n_groups)]
    try:
        found, _ = assign_groups(recipe.grouping, list(tensors))
    except ConfigError:  # written by a later version, or by hand
        found = ()
    return list(found) if len(found) == n_groups else [f"group {i}" for i in range(n_groups)]


def merged_tensors(folder: RunFolder) -> list[str]:
    """Return the tensors that are merged, in their frozen order; [] without a manifest.

    Raises:
        RunError: The manifest cannot be read.
    """
    if not folder.manifest.is_file():
        return []
    try:
        tensors = json.loads(folder.manifest.read_bytes())["tensors"]
        if tensors and all(isinstance(path, dict) for path in tensors.values()):
            tensors = next(iter(tensors.values()))  # several methods: each merges all of them
        return [str(n) for n, path in tensors.items() if not str(path).startswith("copied")]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{folder.manifest}: cannot be read: {error}") from None
