"""LiNeS' alpha from magnitudes: how much smaller a merge is than the experts' plain sum."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from evomerge.core.model_space import ModelSpace
from evomerge.core.recipe import Recipe
from evomerge.errors import ConfigError
from evomerge.merging.derived import Derived
from evomerge.merging.materialize import materialize
from evomerge.merging.plan import assign_roles
from evomerge.merging.source import TensorSource
from evomerge.merging.sums import absolute_sum


def auto_alpha(
    recipe: Recipe,
    space: ModelSpace,
    sources: Mapping[str, TensorSource],
    derived: Derived | None = None,
) -> float:
    """Return (|sum_k delta_k|_1 / |delta_m|_1) / E, delta_m the task vector a recipe merges to.

    Sums of magnitudes over all merged tensors, in float64, the same for any number of threads.
    Reads every source once or twice, one tensor at a time.

    Args:
        recipe: The merge without a scale, over a base and E experts.
        space: The aligned models.
        sources: Every one of them by id.
        derived: What the merge needs; computed here when None.

    Raises:
        ConfigError: There is no base, or the merge equals it.

    Source: Wang et al. 2024 (LiNeS), arXiv:2410.17146, section 4 (merging several tasks).
    """
    roles = assign_roles(recipe, space)
    if roles.base is None:
        raise ConfigError("recipe: layer_scale scales task vectors and needs a base")
    names = {tensor.spec.name for tensor in space.merged}
    sums: list[float] = []
    merges: list[float] = []
    stream = materialize(recipe, space, sources, derived, out_dtype=torch.float32, names=names)
    for name, merged in stream:
        base = sources[roles.base].read(name).float()
        total = torch.zeros_like(base)
        for expert in roles.experts:
            exact = sources[expert].exact_delta(name)
            total += sources[expert].read(name).float() - base if exact is None else exact
        sums.append(absolute_sum(total))
        merges.append(absolute_sum(merged - base))
    size = math.fsum(merges)
    if size == 0.0:
        raise ConfigError(
            "merge.layer_scale.alpha: 'auto' divides by the size of the merged task vector, which "
            "is zero at the parameters' initial values; give alpha a number or a range"
        )
    return math.fsum(sums) / size / len(roles.experts)
