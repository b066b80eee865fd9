"""The `merge:` section of a config -> the search space an algorithm explores.

Each parameter of the merge method is fixed or searched:

====================================  ==================================================
``density: 0.2``                      fixed
``density: search``                   searched over the method's default range
``density: [0.1, 0.9]``               searched over this range
``density: {low: 0.1, high: 0.9, initial: 0.5}``  the same, with a starting value
``weights: {values: [0.3, 0.7]}``     fixed, one value per model
``weights: {curve: 3}``               searched at 3 depths, straight lines between them; may
                                      have `low`, `high` and `initial`, too
not mentioned                         searched if the method gives it no default, else fixed
====================================  ==================================================

`modules: search` adds a gene per group that sends the group back to the base.

`any_of:` in place of `name:` lists several methods to choose from; see `merge_choice`.

`layer_scale:` follows any method on task vectors (LiNeS); its `alpha` may also be "auto" and its
`beta` "tied", that is 1 - alpha.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.config.construct import check_keywords, named_class
from evomerge.config.founders import founders_of
from evomerge.config.layer_curve import split_curve, with_curve
from evomerge.config.layer_scale import LAYER_SCALE, with_layer_scale
from evomerge.config.layer_sequence import build_sequence_space, is_layer_sequence
from evomerge.config.merge_choice import ANY_OF, build_choice
from evomerge.config.module_switch import with_switches
from evomerge.config.parameter import parse_parameter
from evomerge.core.arrays import FloatArray
from evomerge.core.choice_space import Space
from evomerge.core.genes import gene_fields, setting_names
from evomerge.core.grouping import assign_groups, chunk_breaks
from evomerge.core.linear_span import LinearSpan
from evomerge.core.model_space import ModelSpace
from evomerge.core.recipe import SEGMENTS, Recipe, Setting
from evomerge.core.search_space import SWITCH, SearchedParam, SearchSpace
from evomerge.core.tensor_names import count_layers
from evomerge.errors import ConfigError, nearest
from evomerge.merging.operator import merge_operators
from evomerge.merging.parameters import default_settings


def build_space(
    body: Mapping[str, Any],
    model: ModelSpace,
    *,
    founders: str,
    span: LinearSpan | None,
    in_span: bool = False,
    virtual: Mapping[str, tuple[str, ...]] | None = None,
    grams: Mapping[str, FloatArray] | None = None,
    auto_alpha: Callable[[Recipe], float] | None = None,
    n_layers: Mapping[str, int] | None = None,
    numbers: int | None = None,
) -> tuple[Space, dict[str, Any]]:
    """Return the search space of a `merge:` section, and the section with all defaults.

    Args:
        body: The section.
        model: The aligned models.
        founders: Which recipes to begin with: "all", "parents" or "none".
        span: Geometry of the sources' span, for algorithms that need it.
        in_span: The algorithm works in that span, whether `span` is at hand already or not:
            founders are then raw linear recipes.
        virtual: Label of a transform -> ids of the sources it makes.
        grams: Tensor name -> Gram matrix, for founders in the span; see `founders_of`.
        auto_alpha: Recipe without a layer scale -> what `layer_scale.alpha: auto` means for it.
        n_layers: Source id -> number of its layers, for layer sequences; None: as `model` has.
        numbers: About how many numbers the algorithm searches best: a method for which the section
            names no groups gets as many as come to that. None: one group, the whole model.

    Raises:
        ConfigError: Unknown method, key or grouping; an illegal value or range; a method that
            does not fit the models.
    """
    if is_layer_sequence(body):
        names = model.sources[model.has_base :]
        own = n_layers or dict.fromkeys(names, count_layers(t.spec.name for t in model.tensors))
        return build_sequence_space(body, names, own, founders=founders)
    build_one = partial(_one_method, model=model, span=span, auto_alpha=auto_alpha, numbers=numbers)
    space: Space
    space, resolved = build_choice(body, build_one) if ANY_OF in body else build_one(body)
    if founders != "none":
        proposals = founders_of(
            space, model, founders, in_span=in_span, virtual=virtual or {}, grams=grams
        )
        space = replace(space, founders=proposals)
    return space, resolved


def with_groups_of(body: Mapping[str, Any], stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return a `merge:` section with the groups of a run's own where it names none.

    They were chosen when the run was created, maybe by another version.

    Args:
        body: The section as written.
        stored: The run's section, with all defaults.
    """
    if ANY_OF not in body:
        is_other = "groups" not in stored or body.get("name") != stored.get("name")
        kept = {} if is_other or body.get("groups") is not None else {"groups": stored["groups"]}
        return {**body, **kept}
    entries, others = body[ANY_OF], stored.get(ANY_OF, ())
    if "groups" in body or not isinstance(entries, list) or len(entries) != len(others):
        return dict(body)
    named = [{"name": item} if isinstance(item, str) else item for item in entries]
    kept_of = [
        with_groups_of(item, other) if isinstance(item, Mapping) else item
        for item, other in zip(named, others, strict=True)
    ]
    return {**body, ANY_OF: kept_of}


def _one_method(
    body: Mapping[str, Any],
    *,
    model: ModelSpace,
    span: LinearSpan | None,
    auto_alpha: Callable[[Recipe], float] | None,
    numbers: int | None,
) -> tuple[SearchSpace, dict[str, Any]]:
    """Return the same as `build_space` for a section of one method, without founders."""
    name, operator = _operator(body)
    n_experts = len(model.sources) - model.has_base
    _check_fit(name, operator, model, n_experts)
    width = len(model.sources) if operator.weights_over == "sources" else n_experts
    parsed = []
    for item in gene_fields(operator):
        where = f"merge.{item.name}"
        value = body.get(item.name, "search" if item.default is None else item.default)
        n_knots, value = split_curve(value, where)
        columns = width if item.per_source else 1
        parsed.append((item, n_knots, *parse_parameter(item, value, columns, where)))
    groups = body.get("groups")
    if groups is None and numbers and any(n_knots is not None for _, n_knots, _, _ in parsed):
        groups = "layer"  # what a curve needs
    elif groups is None:
        per_group = sum(param.width for _, _, param, _ in parsed if param is not None)
        groups = _default_groups(operator, per_group, numbers, model)
    labels, breaks = _groups(str(groups), name, operator, model)
    searched: list[SearchedParam] = []
    fixed: dict[str, FloatArray] = {}
    resolved: dict[str, Any] = {"name": name, "groups": str(groups)}
    for item, n_knots, param, row in parsed:
        key = item.name
        if param is not None:
            resolved[key] = {"low": param.low, "high": param.high, "initial": param.initial}
            if n_knots is not None:
                param = with_curve(param, n_knots, labels, f"merge.{key}")
                resolved[key]["curve"] = n_knots
            searched.append(param)
        elif item.per_source:
            fixed[key] = np.tile(row, (len(labels), 1))
            resolved[key] = {"values": row.tolist()}
        else:
            fixed[key] = np.full(len(labels), row[0])
            resolved[key] = float(row[0])
    settings = _settings(operator, name, body)
    space = SearchSpace(
        name,
        model.sources,
        SEGMENTS if breaks else str(groups),
        len(labels),
        tuple(searched),
        fixed,
        settings,
        span,
        breaks=breaks,
    )
    if LAYER_SCALE in body:
        space, resolved[LAYER_SCALE] = with_layer_scale(
            space, body[LAYER_SCALE], has_base=model.has_base, auto_alpha=auto_alpha
        )
    if SWITCH in body:
        space = with_switches(space, body[SWITCH], operator)
        resolved[SWITCH] = body[SWITCH]
    return space, resolved | settings


def _default_groups(operator: Any, per_group: int, numbers: int | None, model: ModelSpace) -> str:
    """Return the grouping of a section that names none; see `build_space` for `numbers`.

    Modules, or layers, where they come to that, give or take a factor of two. Else runs of layers,
    or stretches of all elements where there are not layers enough and the method can cut tensors:
    whole tensors keep exact adapters, and recipes that other tools can read.
    """
    count = round((numbers or 0) / max(1, per_group))
    if count < 2:
        return "global"
    names = [tensor.spec.name for tensor in model.merged]
    for grouping in ("module", "layer"):
        if count <= 2 * len(assign_groups(grouping, names)[0]) <= 4 * count:
            return grouping
    if operator.sliceable and count_layers(names) < count:
        return f"chunk:{min(count, model.n_elements)}"
    return f"block:{count}"


def _groups(
    groups: str, name: str, operator: Any, model: ModelSpace
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the labels of the groups, and the breaks between them where they are chunks."""
    try:
        breaks = chunk_breaks(groups, model.n_elements)
        if not breaks:
            return assign_groups(groups, [tensor.spec.name for tensor in model.merged])[0], ()
    except ConfigError as error:
        raise ConfigError(f"merge.groups: {error}") from None
    if not operator.sliceable:
        others: dict[str, Any] = {key: merge_operators.get(key) for key in merge_operators.names()}
        can = [key for key, other in others.items() if other.sliceable]
        raise ConfigError(
            f"merge.groups: {groups!r} cuts tensors in two, and {name!r} needs them whole; use "
            f"groups such as 'module', or one of {', '.join(can)}"
        )
    return tuple(f"chunk.{index}" for index in range(len(breaks) - 1)), breaks


def _operator(body: Mapping[str, Any]) -> tuple[str, Any]:
    """Return name and class of the merge method; refuses keys it does not have."""
    name, operator = named_class(merge_operators, body, "merge")
    genes = [item.name for item in gene_fields(operator)]
    known = [*genes, *setting_names(operator), "groups", LAYER_SCALE, SWITCH]
    for key in body:
        if key != "name" and key not in known:
            raise ConfigError(
                f"merge.{key} is not a parameter of {name!r}.{nearest(str(key), known)} "
                f"Known: {', '.join(sorted(known))}."
            )
    return name, operator


def _check_fit(name: str, operator: Any, model: ModelSpace, n_experts: int) -> None:
    if operator.needs_base and not model.has_base:
        raise ConfigError(f"merge.name: {name!r} works on task vectors; give a `base_model:`")
    if operator.n_models is None:
        return
    countable = {n_experts} if operator.needs_base else {n_experts, len(model.sources)}
    if operator.n_models not in countable:
        raise ConfigError(
            f"merge.name: {name!r} merges exactly {operator.n_models} models, "
            f"{n_experts} are given under `models:`"
        )


def _settings(operator: type, name: str, body: Mapping[str, Any]) -> dict[str, Setting]:
    """Return the operator's settings with defaults filled in, validated by type."""
    defaults = default_settings(operator)
    given = {key: body[key] for key in defaults if key in body}
    genes = {item.name: item for item in gene_fields(operator)}
    stand_ins = {
        key: (item.gene.low,) if item.per_source else item.gene.low for key, item in genes.items()
    }
    checked = check_keywords(operator, {**stand_ins, **given}, "merge", name, Path())
    return {key: checked.get(key, default) for key, default in defaults.items()}
