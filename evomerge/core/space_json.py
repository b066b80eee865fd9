"""A search space as JSON: enough to decode vectors where the models are not at hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from evomerge.core.choice_space import ChoiceSpace, Space
from evomerge.core.search_space import SearchedParam, SearchSpace


def space_to_json(space: Space) -> dict[str, Any]:
    """Return a JSON-ready mapping of a space, without its founders and its span."""
    if isinstance(space, ChoiceSpace):
        branches = zip(space.labels, space.branches, strict=True)
        return {"any_of": [{"label": name, **space_to_json(branch)} for name, branch in branches]}
    return {
        "operator": space.operator,
        "sources": list(space.sources),
        "grouping": space.grouping,
        "n_groups": space.n_groups,
        "searched": [asdict(item) for item in space.searched],
        "fixed": {name: np.asarray(value).tolist() for name, value in space.fixed.items()},
        "settings": dict(space.settings),
        "breaks": list(space.breaks),
    }


def space_from_json(body: Mapping[str, Any]) -> Space:
    """Read what `space_to_json` wrote.

    Raises:
        KeyError: A key is missing.
        TypeError: A parameter has unknown keys.
        ValueError: A number is none, or there is no choice between the methods.
    """
    if "any_of" in body:
        branches = tuple(_one_method(branch) for branch in body["any_of"])
        return ChoiceSpace(branches, tuple(str(branch["label"]) for branch in body["any_of"]))
    return _one_method(body)


def _one_method(body: Mapping[str, Any]) -> SearchSpace:
    return SearchSpace(
        str(body["operator"]),
        tuple(str(source) for source in body["sources"]),
        str(body["grouping"]),
        int(body["n_groups"]),
        tuple(SearchedParam(**item) for item in body["searched"]),
        {name: np.asarray(value, dtype=np.float64) for name, value in body["fixed"].items()},
        dict(body["settings"]),
        breaks=tuple(int(offset) for offset in body.get("breaks", ())),
    )
