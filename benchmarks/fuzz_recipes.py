"""Recipes that fuzzing begins from."""

from __future__ import annotations

import numpy as np

from evomerge.core.ancestry import ancestor_name
from evomerge.core.noise import noise_name
from evomerge.core.recipe import Recipe


def plain_recipes() -> list[Recipe]:
    """Return recipes over models on disk."""
    return [
        Recipe("task_arithmetic", ("base", "x", "y"), {"weights": np.array([[0.3, 0.7]])}),
        Recipe(
            "ties",
            ("base", "x", "y"),
            {"weights": np.full((2, 2), 0.5), "density": [0.2, 1.0], "lambda_": [1.0, 1.0]},
            "segments",
            np.array([0, 7, 12]),
            {"compat": "paper"},
        ),
    ]


def descendant() -> Recipe:
    """Return a recipe over two generations of ancestors."""
    settings, noise = {"normalize": False}, noise_name(7)
    recipe = Recipe("linear", ("base", "x", noise), {"weights": np.ones((1, 3))}, settings=settings)
    for weight in (0.5, 0.25):
        name = ancestor_name(recipe.digest())
        weights = {"weights": np.full((2, 4), weight)}
        recipe = Recipe(
            "linear",
            ("base", "x", noise, name),
            weights,
            "segments",
            np.array([0, 7, 12]),
            settings,
            {name: recipe},
        )
    return recipe
