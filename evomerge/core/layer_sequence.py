"""Layer sequences as recipes: which layer of which model comes when, and with which scale.

Shape letter: S steps of a sequence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from evomerge.core.layer_plan import LayerPlan, LayerSlot
from evomerge.core.recipe import Recipe
from evomerge.errors import ConfigError

LAYER_SEQUENCE = "layer_sequence"
GROUPING = "sequence"  # a row of parameters is a step
_PARAMS = {"source", "layer", "scale"}


def recipe_of(plan: LayerPlan, sources: Sequence[str]) -> Recipe:
    """Return a layer plan as a recipe: params `source`, `layer` and `scale`, (S,) each.

    Args:
        plan: The layers; embeddings, final norm and head are those of one source.
        sources: (K,) ids; `source` counts in them.

    Raises:
        ConfigError: The plan names another source, or stem and tail differ.
    """
    if plan.stem != plan.tail:
        raise ConfigError("recipe: a layer sequence has stem and tail of one model")
    place = {name: float(index) for index, name in enumerate(sources)}
    missing = [name for name in plan.sources if name not in place]
    if missing:
        raise ConfigError(f"recipe: {missing[0]!r} is not a source; they are {', '.join(sources)}")
    slots = plan.layers
    params = {
        "source": np.array([place[slot.source] for slot in slots]),
        "layer": np.array([float(slot.layer) for slot in slots]),
        "scale": np.array([slot.scale for slot in slots]),
    }
    settings = {"start": plan.stem}
    return Recipe(LAYER_SEQUENCE, tuple(sources), params, GROUPING, None, settings)


def plan_of(recipe: Recipe, n_layers: Mapping[str, int] | None = None) -> LayerPlan:
    """Return the layer plan of a recipe; inverts `recipe_of`.

    Args:
        recipe: A layer sequence.
        n_layers: Source id -> number of its layers, to check the plan against; None: unchecked.

    Raises:
        ConfigError: It is no layer sequence, an index is none, or a model lacks a layer.
    """
    if (
        recipe.operator != LAYER_SEQUENCE
        or set(recipe.params) != _PARAMS
        or any(value.ndim != 1 for value in recipe.params.values())
        or set(recipe.settings) != {"start"}
        or recipe.grouping != GROUPING
    ):
        raise ConfigError(
            f"recipe: {recipe.operator} is no layer sequence: that has the setting start and "
            "(S,) params source, layer and scale"
        )
    sources, layers = (_indices(recipe, name) for name in ("source", "layer"))
    if max(sources) >= len(recipe.sources):
        raise ConfigError(
            f"recipe: params.source has {max(sources)}, there are {len(recipe.sources)} sources"
        )
    slots = tuple(
        LayerSlot(recipe.sources[source], layer, float(scale))
        for source, layer, scale in zip(sources, layers, recipe.params["scale"], strict=True)
    )
    start = str(recipe.settings["start"])
    plan = LayerPlan(slots, start, start)
    if n_layers is not None:
        plan.check(n_layers)
    return plan


def _indices(recipe: Recipe, name: str) -> list[int]:
    values = recipe.params[name]
    if (values != np.floor(values)).any() or (values < 0).any():
        raise ConfigError(f"recipe: params.{name} must be whole numbers, 0 or more")
    return [int(value) for value in values]
