"""What a recipe over adapters changes in its base, as an adapter again, where that is exact."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from evomerge.core.ancestry import is_made
from evomerge.core.grouping import assign_groups
from evomerge.core.model_space import ModelSpace, SpaceTensor
from evomerge.core.recipe import Recipe
from evomerge.core.tensor_names import count_layers
from evomerge.errors import ConfigError
from evomerge.merging.evo_merging import EvoMerging
from evomerge.merging.layer_scale import LayerScaled
from evomerge.merging.linear import Linear
from evomerge.merging.low_rank import LowRank, concatenate, read_factors
from evomerge.merging.operator import MergeOperator
from evomerge.merging.plan import assign_roles, build_operators
from evomerge.merging.source import TensorSource
from evomerge.merging.task_arithmetic import TaskArithmetic

# Coefficients over sources that sum to 1 up to rounding leave the base as it is.
_ROUNDING = 1e-9


class AdapterChange:
    """merged - base as factors, for tensors that are linear in adapters of one base."""

    def __init__(
        self, recipe: Recipe, space: ModelSpace, sources: Mapping[str, TensorSource]
    ) -> None:
        """Args: recipe: over the space; space: with a base; sources: id -> model.

        Raises:
            ConfigError: The recipe does not fit the space.
        """
        self._operators = build_operators(recipe, space)
        self._roles = assign_roles(recipe, space)
        if any(map(is_made, recipe.sources)):
            raise ConfigError(
                "the recipe adds noise to every weight, which is no adapter; export the full model"
            )
        self._breaks = recipe.breaks
        self._sources = sources
        self._base = space.sources[0]
        self._n_layers = count_layers(tensor.spec.name for tensor in space.tensors)
        merged = [tensor.spec.name for tensor in space.merged]
        self._row_of: dict[str, int] = {}
        if recipe.breaks is None:
            _, rows = assign_groups(recipe.grouping, merged)
            self._row_of = dict(zip(merged, rows, strict=True))

    def factors(self, tensor: SpaceTensor) -> LowRank | None:
        """Return the exact change of one merged tensor, or None where it is not low-rank."""
        operator = self._operator(tensor)
        parts = self._parts(tensor)
        if operator is None or parts is None:
            return None
        name, has_base = tensor.spec.name, self._roles.base is not None
        if not isinstance(operator, LayerScaled):
            return _change(operator, parts, name, has_base=has_base)
        change = _change(operator.operator, parts, name, has_base=has_base)
        scale = operator.scale.at(name, self._n_layers)
        return None if change is None else concatenate([change], [scale])

    def _operator(self, tensor: SpaceTensor) -> MergeOperator | None:
        """Return the operator of the whole tensor, None when segments divide it."""
        if self._breaks is None:
            return self._operators[self._row_of[tensor.spec.name]]
        breaks = self._breaks - tensor.offset
        first = int(np.searchsorted(breaks, 0, side="right")) - 1
        last = int(np.searchsorted(breaks, tensor.spec.n_elements, side="left"))
        return self._operators[first] if last == first + 1 else None

    def _parts(self, tensor: SpaceTensor) -> list[LowRank] | None:
        """Return every expert's factors, of rank 0 where it equals the base; None without."""
        name, shape = tensor.spec.name, tensor.spec.shape
        found = {key: read_factors(self._sources[key], name) for key in self._roles.experts}
        known = next((part for part in found.values() if part is not None), None)
        if known is None:
            return None
        zero = LowRank.zero(known.b.shape[0], known.a.shape[1], is_transposed=known.is_transposed)
        if math.prod(zero.shape) != math.prod(shape):
            return None
        parts: list[LowRank] = []
        for key, part in found.items():
            if part is None and not self._equals_base(key, name):
                return None
            parts.append(zero if part is None else part)
        return parts

    def _equals_base(self, key: str, name: str) -> bool:
        digests = (self._sources[source].header().digests.get(name) for source in (self._base, key))
        own, other = digests
        return own is not None and own == other


def _change(
    operator: MergeOperator, parts: Sequence[LowRank], name: str, *, has_base: bool
) -> LowRank | None:
    if isinstance(operator, TaskArithmetic):
        return concatenate(parts, operator.scales())
    if isinstance(operator, EvoMerging):
        return operator.merged_factors(tuple(parts), name)
    if isinstance(operator, Linear):
        coefficients = operator.coefficients()
        if abs(math.fsum(coefficients) - 1.0) <= _ROUNDING:
            return concatenate(parts, coefficients[1:] if has_base else coefficients)
    return None
