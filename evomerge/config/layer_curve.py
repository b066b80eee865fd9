"""`{curve: 5}`: a parameter that follows a line of few knots over the depth of the model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from evomerge.core.search_space import SearchedParam
from evomerge.errors import ConfigError


def split_curve(value: Any, where: str) -> tuple[int | None, Any]:
    """Return the number of knots and the rest of a parameter's section; None without `curve:`.

    Raises:
        ConfigError: `curve` is not a whole number of at least 2.
    """
    if not isinstance(value, Mapping) or "curve" not in value:
        return None, value
    n_knots = value["curve"]
    if isinstance(n_knots, bool) or not isinstance(n_knots, int) or n_knots < 2:
        raise ConfigError(f"{where}.curve is {n_knots!r}; expected a number of knots, at least 2")
    rest = {key: item for key, item in value.items() if key != "curve"}
    if "values" in rest:
        raise ConfigError(f"{where}: give `curve` or `values`, a curve is searched")
    return n_knots, rest or "search"


def with_curve(
    param: SearchedParam, n_knots: int, labels: Sequence[str], where: str
) -> SearchedParam:
    """Return the parameter with knots at even depths instead of a value per group.

    Between two knots the values lie on a line; what comes before the first layer (embeddings)
    takes the first knot, what comes after the last the last one.

    Args:
        param: With one value per group.
        n_knots: At least 2.
        labels: (G,) names of the groups, those of `groups: layer` or `block:N`.
        where: Position in the config, for errors.

    Raises:
        ConfigError: The groups are not layers, or are fewer than the knots.
    """
    found = [re.fullmatch(r"(?:layer|block)\.(\d+)", label) for label in labels]
    layers = [int(match[1]) for match in found if match]
    if not layers:
        raise ConfigError(f"{where}.curve: follows the layers; set merge.groups to 'layer'")
    if n_knots > len(layers):
        raise ConfigError(
            f"{where}.curve is {n_knots}, but there are {len(layers)} layers; use as many knots "
            "at most, or leave `curve` out"
        )
    last = max(layers)
    depth = [
        int(match[1]) / max(last, 1) if match else float(label == "head")
        for label, match in zip(labels, found, strict=True)
    ]
    at = np.array(depth) * (n_knots - 1)
    shares = np.maximum(0.0, 1.0 - np.abs(at[:, None] - np.arange(n_knots)))
    return replace(param, curve=tuple(map(tuple, shares.tolist())))
