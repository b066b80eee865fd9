"""The `merge.layer_scale:` section: LiNeS after any merge method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from evomerge.config.parameter import parse_parameter
from evomerge.core.arrays import FloatArray
from evomerge.core.genes import gene_fields
from evomerge.core.recipe import Recipe
from evomerge.core.search_space import SearchedParam, SearchSpace
from evomerge.errors import ConfigError, nearest
from evomerge.merging.layer_scale import PREFIX, LayerScale

LAYER_SCALE = "layer_scale"
_DEFAULTS = {"alpha": "auto", "beta": "search"}  # the paper's form for several models
_OWN_WORDS = {"alpha": "auto", "beta": "tied"}


def with_layer_scale(
    space: SearchSpace,
    body: Any,
    *,
    has_base: bool,
    auto_alpha: Callable[[Recipe], float] | None,
) -> tuple[SearchSpace, dict[str, Any]]:
    """Return a space whose recipes scale the merged task vector, and the section with defaults.

    Args:
        space: The space of the merge method alone.
        body: The section: `alpha` a parameter or "auto", `beta` a parameter or "tied".
        has_base: The models have a base.
        auto_alpha: Gives "auto" for a recipe of `space`, that of the initial values.

    Raises:
        ConfigError: A key is unknown or a value malformed, there is no base, or nothing can tell
            what "auto" is.
    """
    where = f"merge.{LAYER_SCALE}"
    if not has_base:
        raise ConfigError(f"{where}: scales task vectors; give a `base_model:`")
    if not isinstance(body, dict):
        raise ConfigError(f"{where} is {body!r}; expected `alpha` and `beta`")
    for key in body:
        if key not in _DEFAULTS:
            raise ConfigError(
                f"{where}.{key} is unknown.{nearest(str(key), _DEFAULTS)} "
                f"Known: {', '.join(_DEFAULTS)}."
            )
    given = {**_DEFAULTS, **body}
    if given["alpha"] == "auto":
        if auto_alpha is None:
            raise ConfigError(f"{where}.alpha: 'auto' is measured on the models; give a number")
        given["alpha"] = auto_alpha(space.decode(space.initial()))
    searched: list[SearchedParam] = []
    fixed: dict[str, FloatArray] = {}
    resolved: dict[str, Any] = {}
    for item in gene_fields(LayerScale):
        value, name = given[item.name], PREFIX + item.name
        if item.name == "beta" and value == "tied":
            resolved["beta"] = value
            continue
        if isinstance(value, str) and value != "search":
            raise ConfigError(
                f"{where}.{item.name} is {value!r}; expected a number, a range, 'search' or "
                f"{_OWN_WORDS[item.name]!r}"
            )
        param, row = parse_parameter(replace(item, name=name), value, 1, f"{where}.{item.name}")
        if param is not None:
            searched.append(param)
            resolved[item.name] = {"low": param.low, "high": param.high, "initial": param.initial}
        else:
            fixed[name] = np.full(space.n_groups, row[0])
            resolved[item.name] = float(row[0])
    scaled = replace(
        space,
        searched=(*space.searched, *searched),
        fixed={**space.fixed, **fixed},
    )
    return scaled, resolved
