"""From a recipe to checked operators: which groups there are, and who merges which tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from evomerge.core.ancestry import is_made
from evomerge.core.arrays import FloatArray, IntArray
from evomerge.core.genes import gene_fields
from evomerge.core.grouping import assign_groups
from evomerge.core.model_space import ModelSpace, SpaceTensor
from evomerge.core.recipe import SEGMENTS, Recipe, Setting
from evomerge.errors import ConfigError
from evomerge.merging.layer_scale import LayerScale, LayerScaled, layer_scales, own_params
from evomerge.merging.operator import MergeOperator, merge_operators
from evomerge.merging.parameters import check_fields, check_names, require_fields

MAX_MADE = 1024  # terms of one recipe beside the models; a search's have 35 at most
# Elements at once of a sum with noise, which is made where it is added: 32 terms of it are 0.5 GB.
PIECE = 1 << 22
_LARGEST = float(np.finfo(np.float32).max)


@runtime_checkable
class FallsBack(Protocol):
    """An operator that merges some tensors by a simpler formula."""

    def fallback(self, name: str, shape: tuple[int, ...]) -> str | None:
        """Return how such a tensor is merged instead, or None."""
        ...


@dataclass(frozen=True)
class Roles:
    """Which of a recipe's sources is the base.

    Attributes:
        base: Id of the base, or None for a merge without one.
        experts: (E,) the other ids, in recipe order.
    """

    base: str | None
    experts: tuple[str, ...]


def assign_roles(recipe: Recipe, space: ModelSpace) -> Roles:
    """Return base and experts; the base counts as such only when the recipe starts with it.

    Raises:
        ConfigError: A source is unknown or repeats, there is only a base, an ancestor's recipe is
            missing, or there is noise or an ancestor in a merge that is not linear, or too much.
    """
    made = [name for name in recipe.sources if is_made(name)]
    if made and recipe.operator != "linear":
        raise ConfigError(
            f"recipe: {made[0]!r} can be added by 'linear' only, not by {recipe.operator!r}"
        )
    if len(made) > MAX_MADE:
        raise ConfigError(
            f"recipe: names {len(made)} terms of noise and ancestors, and every one is a pass over "
            f"all weights; at most {MAX_MADE} are merged"
        )
    lost = [name for name in recipe.named if name not in recipe.ancestors]
    if lost:
        raise ConfigError(f"recipe: the recipe of {lost[0]!r} is missing from `ancestors`")
    known = {*space.sources, *made}
    unknown = [name for name in recipe.sources if name not in known]
    if unknown:
        raise ConfigError(
            f"recipe: {unknown[0]!r} is not a source; the models are {', '.join(space.sources)}"
        )
    if len(set(recipe.sources)) != len(recipe.sources):
        raise ConfigError(f"recipe: sources repeat: {', '.join(recipe.sources)}")
    if space.has_base and recipe.sources[0] == space.sources[0]:
        roles = Roles(recipe.sources[0], recipe.sources[1:])
    else:
        roles = Roles(None, recipe.sources)
    if not roles.experts:
        raise ConfigError("recipe: a base alone is no merge; name at least one expert")
    return roles


def group_labels(recipe: Recipe, space: ModelSpace) -> tuple[str, ...]:
    """Return (G,) names of the recipe's groups."""
    if recipe.breaks is not None:
        return tuple(f"segment.{i}" for i in range(len(recipe.breaks) - 1))
    labels, _ = assign_groups(recipe.grouping, [tensor.spec.name for tensor in space.merged])
    return labels


def build_operators(recipe: Recipe, space: ModelSpace) -> list[MergeOperator]:
    """Return one checked operator per group, a `LayerScaled` one where the recipe has a scale.

    Raises:
        ConfigError: The recipe names an unknown operator, source, parameter or setting; rows
            or columns do not fit; a value is not legal; or the operator cannot run on these
            sources. Messages start with "recipe:".
    """
    cls = merge_operators.get(recipe.operator)
    roles = assign_roles(recipe, space)
    _check_sources(cls, recipe, roles)
    labels = group_labels(recipe, space)
    if recipe.breaks is not None and recipe.breaks[-1] != space.n_elements:
        raise ConfigError(
            f"recipe: breaks end at {recipe.breaks[-1]}, the models have {space.n_elements} "
            "merged elements"
        )
    if recipe.params and recipe.n_groups != len(labels):
        raise ConfigError(
            f"recipe: params have {recipe.n_groups} rows, grouping {recipe.grouping!r} makes "
            f"{len(labels)} groups here ({', '.join(labels[:3])}{', …' if len(labels) > 3 else ''})"
        )
    check_names(cls, recipe.settings, where="recipe: settings")
    params, scales = own_params(recipe.params), layer_scales(recipe.params)
    if scales and roles.base is None:
        raise ConfigError(
            "recipe: layer_scale scales task vectors and needs the base first in `sources`; they "
            f"are {', '.join(recipe.sources)}"
        )
    require_fields(cls, params, where="recipe: params")
    _check_size(recipe.params)
    over_sources = getattr(cls, "weights_over", "experts") == "sources"
    over = recipe.sources if over_sources else roles.experts
    _check_shapes(cls, params, over)
    operators = [
        _build_one(cls, params, recipe.settings, row, label) for row, label in enumerate(labels)
    ]
    return _scaled(operators, scales)


def check_ancestor(recipe: Recipe, space: ModelSpace) -> None:
    """Check that a recipe may be an ancestor: a weighted sum that fits the models.

    Raises:
        ConfigError: It may not; names it.
    """
    is_plain = recipe.operator == "linear" and dict(recipe.settings) == {"normalize": False}
    is_whole = recipe.breaks is not None or recipe.grouping == "global"
    if not is_plain or not is_whole or set(recipe.params) != {"weights"}:
        raise ConfigError(
            f"recipe: ancestor {recipe.digest()} is no weighted sum of the whole models or of "
            "segments (linear, normalize: false), and no other merge can be an ancestor"
        )
    try:
        build_operators(recipe, space)
    except ConfigError as error:
        text = str(error).removeprefix("recipe: ")
        raise ConfigError(f"recipe: ancestor {recipe.digest()}: {text}") from None


def _check_sources(cls: Any, recipe: Recipe, roles: Roles) -> None:
    if cls.needs_base and roles.base is None:
        raise ConfigError(
            f"recipe: {recipe.operator} works on task vectors and needs the base first in "
            f"`sources`; they are {', '.join(recipe.sources)}"
        )
    if recipe.grouping == SEGMENTS and not cls.sliceable:
        raise ConfigError(f"recipe: {recipe.operator} cannot be applied to segments of tensors")
    wanted = cls.n_models
    if wanted is None or len(roles.experts) == wanted:
        return
    if not cls.needs_base and len(recipe.sources) == wanted:
        return
    raise ConfigError(
        f"recipe: {recipe.operator} merges exactly {wanted} models, got "
        f"{len(roles.experts)} experts{'' if roles.base is None else ' and a base'}"
    )


def _check_size(params: Mapping[str, FloatArray]) -> None:
    for name, value in params.items():
        if (np.abs(value) > _LARGEST).any():
            raise ConfigError(
                f"recipe: params.{name} holds {np.abs(value).max():.3g}; merges are computed in "
                f"float32, which ends at {_LARGEST:.3g}"
            )


def _check_shapes(cls: type, params: Mapping[str, FloatArray], over: Sequence[str]) -> None:
    for item in gene_fields(cls):
        if item.name not in params:
            continue
        shape = params[item.name].shape
        if item.per_source and (len(shape) != 2 or shape[1] != len(over)):
            raise ConfigError(
                f"recipe: params.{item.name} must be ({shape[0]}, {len(over)}), one value per "
                f"source ({', '.join(over)}), is {shape}"
            )
        if not item.per_source and len(shape) != 1:
            raise ConfigError(
                f"recipe: params.{item.name} must be ({shape[0]},), one number per group, "
                f"is {shape}"
            )


def _scaled(operators: list[MergeOperator], scales: Sequence[LayerScale]) -> list[MergeOperator]:
    if not scales:
        return operators
    return [LayerScaled(part, scale) for part, scale in zip(operators, scales, strict=True)]


def _build_one(
    cls: type,
    params: Mapping[str, FloatArray],
    settings: Mapping[str, Setting],
    row: int,
    label: str,
) -> MergeOperator:
    values = {
        name: tuple(value[row].tolist()) if value.ndim == 2 else float(value[row])
        for name, value in params.items()
    }
    try:
        built: MergeOperator = cls(**values, **settings)
        check_fields(built)
    except ConfigError as error:
        where = "" if label == "all" else f"group {label!r}: "
        raise ConfigError(f"recipe: {where}{error}") from None
    return built


def tensor_keys(
    recipe: Recipe, space: ModelSpace, operators: Sequence[MergeOperator]
) -> dict[str, object]:
    """Return what each tensor of the merged model depends on, beside the sources themselves.

    Two recipes over the same sources give a tensor the same value where its keys are equal, so a
    resident model needs only the other tensors rebuilt.

    Args:
        recipe: What to compute.
        space: The aligned models.
        operators: From `build_operators`.
    """
    keys: dict[str, object] = {}
    merged = space.merged
    rows: tuple[int, ...] = ()
    if recipe.breaks is None:
        _, rows = assign_groups(recipe.grouping, [tensor.spec.name for tensor in merged])
    row_of = {tensor.spec.name: row for tensor, row in zip(merged, rows, strict=False)}
    for tensor in space.tensors:
        name = tensor.spec.name
        if tensor.action == "copy":
            keys[name] = "copied"
        elif recipe.breaks is None:
            keys[name] = (recipe.sources, operators[row_of[name]])
        else:
            stretches = segments_of(tensor, recipe.breaks)
            keys[name] = (recipe.sources, [(*rest, operators[row]) for row, *rest in stretches])
    return keys


def segments_of(
    tensor: SpaceTensor, breaks: IntArray, *, longest: int | None = None
) -> list[tuple[int, int, int]]:
    """Return (segment, start, stop) of the stretches of a tensor's elements, in order.

    Args:
        tensor: The tensor.
        breaks: (S + 1,) see `Recipe`.
        longest: Elements of a stretch at most; None: as many as there are.
    """
    n_elements = tensor.spec.n_elements
    inside = breaks - tensor.offset
    first = int(np.searchsorted(inside, 0, side="right")) - 1
    last = int(np.searchsorted(inside, n_elements, side="left"))
    whole = [
        (row, max(int(inside[row]), 0), min(int(inside[row + 1]), n_elements))
        for row in range(first, last)
    ]
    if longest is None:
        return whole
    return [
        (row, piece, min(piece + longest, stop))
        for row, start, stop in whole
        for piece in range(start, stop, longest)
    ]


def plan_paths(recipe: Recipe, space: ModelSpace) -> dict[str, str]:
    """Return what happens to every tensor of the merged model, for the run's manifest.

    Returns:
        Tensor name -> "merged", "copied: <reason>" or "fallback: <how>".
    """
    operators = build_operators(recipe, space)
    merged = space.merged
    rows: tuple[int, ...] = (0,) * len(merged)
    if recipe.breaks is None:
        _, rows = assign_groups(recipe.grouping, [tensor.spec.name for tensor in merged])
    row_of = {tensor.spec.name: row for tensor, row in zip(merged, rows, strict=True)}
    paths: dict[str, str] = {}
    for tensor in space.tensors:
        if tensor.action == "copy":
            paths[tensor.spec.name] = f"copied: {tensor.reason}"
            continue
        operator = operators[row_of[tensor.spec.name]]
        how = None
        if isinstance(operator, FallsBack):
            how = operator.fallback(tensor.spec.name, tensor.spec.shape)
        paths[tensor.spec.name] = "merged" if how is None else f"fallback: {how}"
    return paths
