"""The manifest of a whole search, before there is a candidate."""

from __future__ import annotations

from typing import Any

import numpy as np

from evomerge.config.models import OpenModels
from evomerge.core.choice_space import ChoiceSpace, Space
from evomerge.core.layer_sequence_space import LayerSequenceSpace
from evomerge.merging.manifest import FORMAT, manifest_of


def search_manifest(space: Space, models: OpenModels) -> dict[str, Any]:
    """Return which tensor takes which path in every candidate of the config's merge method.

    Where the method is searched too, `tensors` holds such a mapping for each of `any_of`'s labels.

    Of a search over layer sequences it has `layers`, source -> how many, and no tensors.

    Founders of other methods may have paths of their own; an export has the manifest of its recipe.

    Raises:
        ConfigError: The fixed parameters fit no recipe.
    """
    if isinstance(space, ChoiceSpace):
        parts = [search_manifest(branch, models) for branch in space.branches]
        tensors = {label: part["tensors"] for label, part in zip(space.labels, parts, strict=True)}
        return parts[0] | {"merge": " or ".join(space.methods), "tensors": tensors}
    if isinstance(space, LayerSequenceSpace):  # which tensors there are is what is searched
        layers = dict(space.n_layers)
        nothing: dict[str, Any] = {"tensors": {}, "left_out": {}, "transforms": []}
        return {"format": FORMAT, "merge": space.operator, "layers": layers, **nothing}
    # Any legal values give the same paths. Not the middle of all ranges, where weights cancel.
    recipe = space.decode(np.linspace(0.25, 0.95, space.dimension))
    return manifest_of(recipe, models.space, models.sources)
