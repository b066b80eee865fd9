"""The models themselves as points of a search space, and mixtures of them.

Algorithms that breed or move models need to know where those lie. In a space whose merge method is
linear (`linear`, `task_arithmetic`) every convex combination of points is that combination of the
models, exactly. Shape letters: C corners, D dimensions.
"""

from __future__ import annotations

import numpy as np

from evomerge.core.arrays import FloatArray
from evomerge.core.choice_space import ChoiceSpace, Space
from evomerge.core.layer_sequence_space import LayerSequenceSpace
from evomerge.core.search_space import SearchedParam, SearchSpace

# The parameters that say how much of each model goes in.
WEIGHTS = ("weights", "beta")


def param_slices(space: Space) -> dict[str, slice]:
    """Return searched parameter -> its stretch of a (D,) vector, group by group."""
    return {stretch.param.name: stretch.slice for stretch in space.layout}


def corners(space: Space) -> FloatArray:
    """Return (C, D) the models as vectors: weight 1 for one of them in every group.

    Other searched parameters have their initial values. A weight outside the searched range
    becomes the nearest inside. C is the number of weighted models, and 2 where there are not two:
    then the corners are the lower and the upper end of every range. Where the method is searched
    too, they are those of one method after the other. Where sequences of layers are searched, they
    are the layers of one model each.
    """
    if isinstance(space, LayerSequenceSpace):
        return space.corners()
    if isinstance(space, ChoiceSpace):
        own = [corners(branch) for branch in space.branches]
        return np.concatenate([space.place(index, points) for index, points in enumerate(own)])
    item = _weights(space)
    if item is None or item.width < 2:
        return np.stack([np.zeros(space.dimension), np.ones(space.dimension)])
    return np.stack([_weighted(space, item, row) for row in np.eye(item.width)])


def origin(space: Space) -> FloatArray:
    """Return (D,) the point that task vectors start from.

    The base, as weight 0 for every expert, where the base has no weight of its own; else the mean
    of the corners. Where the method is searched too, that of the first method.
    """
    if isinstance(space, ChoiceSpace):
        return space.place(0, origin(space.branches[0]))
    item = _weights(space)
    if item is not None and 2 <= item.width < len(space.sources):
        return _weighted(space, item, np.zeros(item.width))
    mean: FloatArray = corners(space).mean(axis=0)
    return mean


def _weights(space: SearchSpace) -> SearchedParam | None:
    found = (item for item in space.searched if item.per_source and item.name in WEIGHTS)
    return next(found, None)


def _weighted(space: SearchSpace, item: SearchedParam, row: FloatArray) -> FloatArray:
    vector = space.initial()
    unit = np.clip((row - item.low) / (item.high - item.low), 0.0, 1.0)
    vector[param_slices(space)[item.name]] = np.tile(unit, item.n_rows(space.n_groups))
    return vector


def random_mixture(points: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Return (D,) a convex combination of (C, D) points, uniform over the simplex: Dirichlet(1)."""
    mixed: FloatArray = rng.dirichlet(np.ones(len(points))) @ points
    return mixed
