"""Recipes for people: a summary of every shown candidate, and coefficient maps of some.

Shapes: G groups of tensors.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from evomerge.config.recipe_columns import group_labels, labelled_columns, merged_tensors
from evomerge.config.results import RunResults
from evomerge.core.arrays import FloatArray
from evomerge.core.recipe import Recipe
from evomerge.report.niches import spread
from evomerge.report.numbers import short

MAX_VALUES = 250_000  # numbers in all coefficient maps together: about 2 MB
MAX_ROWS = 400  # groups of one map; of more, an even sample
MAX_SUMMARIES = 40_000  # rows of all summaries together: about 2 MB


def recipes(results: RunResults, ids: list[int], mapped: list[int]) -> dict[str, Any]:
    """Return what the recipes of candidates say.

    Args:
        results: The run.
        ids: Candidates to summarise, the important ones first.
        mapped: Candidates whose coefficients are shown group by group.

    Returns:
        `summaries`: id -> method, grouping and rows (parameter, source, mean, low, high);
        `maps`: id -> group labels' key, column labels and (G, columns) values;
        `labels`: key -> (G,) labels. Late ids are left out when there would be too much.
    """
    names = merged_tensors(results.folder)
    labels: dict[str, list[str]] = {}
    summaries: dict[str, Any] = {}
    maps: dict[str, Any] = {}
    n_rows = n_values = 0
    for candidate_id in mapped + [i for i in ids if i not in set(mapped)]:
        recipe = _recipe(results, candidate_id)
        columns = _columns(recipe)
        n_rows += len(columns)
        if n_rows > MAX_SUMMARIES:
            break
        summaries[str(candidate_id)] = _summary(recipe, columns)
        if candidate_id in mapped and columns:
            shown = spread(recipe.n_groups, MAX_ROWS)
            n_values += len(shown) * len(columns)
            if n_values > MAX_VALUES:
                continue
            key = f"{recipe.grouping}/{recipe.n_groups}"
            if key not in labels:
                full = group_labels(recipe, names)
                labels[key] = [full[i] for i in shown]
            maps[str(candidate_id)] = {
                "labels": key,
                "groups": recipe.n_groups,
                "columns": [label for label, _ in columns],
                "values": [[short(float(values[i])) for _, values in columns] for i in shown],
            }
    return {"summaries": summaries, "maps": maps, "labels": labels}


def _recipe(results: RunResults, candidate_id: int) -> Recipe:
    return results.candidate(candidate_id).recipe


def _columns(recipe: Recipe) -> list[tuple[str, FloatArray]]:
    """Return (label, (G,) values) of every parameter, one per source where it has several."""
    return [(label, values) for _, label, values in labelled_columns(recipe, ": ")]


def _summary(recipe: Recipe, columns: list[tuple[str, FloatArray]]) -> dict[str, Any]:
    settings = ", ".join(f"{key}={value}" for key, value in recipe.settings.items())
    return {
        "operator": recipe.operator,
        "grouping": recipe.grouping,
        "groups": recipe.n_groups,
        "settings": settings,
        "sources": list(recipe.sources),
        "rows": [
            [
                label,
                short(float(np.mean(values))),
                short(float(values.min())),
                short(float(values.max())),
            ]
            for label, values in columns
        ],
    }
