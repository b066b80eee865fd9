"""The manifest of a whole search, before there is a candidate."""

from __future__ import annotations

from typing import Any

import numpy as np

from evomerge.config.models import OpenModels
from evomerge.core.search_space import SearchSpace
from evomerge.merging.manifest import manifest_of


def search_manifest(space: SearchSpace, models: OpenModels) -> dict[str, Any]:
    """Return which tensor takes which path in every candidate of the config's merge method.

    Founders of other methods may have paths of their own; an export has the manifest of its recipe.

    Raises:
        ConfigError: The fixed parameters fit no recipe.
    """
    # Any legal values give the same paths. Not the middle of all ranges, where weights cancel.
    recipe = space.decode(np.linspace(0.25, 0.95, space.dimension))
    return manifest_of(recipe, models.space, models.sources)
