"""`merge: {name: layer_sequence}`: a search over which layers of which model come in which order.

    merge:
      name: layer_sequence
      start: math            # the model whose embeddings, head and layers the search begins with
      repeats: 2             # how often all layers stand in series
      scaling: low_rank      # or layer, none: factors of the hidden state between layers

The keys are those of `core.layer_sequence_space.SequenceRules`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from evomerge.config.construct import check_keywords
from evomerge.core.candidate import Proposal
from evomerge.core.layer_plan import LayerPlan
from evomerge.core.layer_sequence import LAYER_SEQUENCE, recipe_of
from evomerge.core.layer_sequence_space import (
    LayerSequenceSpace,
    SequenceRules,
    layer_sequence_space,
)
from evomerge.errors import ConfigError


def is_layer_sequence(body: Mapping[str, Any]) -> bool:
    """Return whether a `merge:` section searches layer sequences."""
    return body.get("name") == LAYER_SEQUENCE


def read_rules(body: Mapping[str, Any]) -> SequenceRules:
    """Return the rules of a `merge:` section.

    Raises:
        ConfigError: A key is unknown, or its value is not legal.
    """
    given = {key: value for key, value in body.items() if key != "name"}
    checked = check_keywords(SequenceRules, given, "merge", LAYER_SEQUENCE, Path())
    try:
        return SequenceRules(**checked)
    except ConfigError as error:
        raise ConfigError(f"merge.{error}") from None


def build_sequence_space(
    body: Mapping[str, Any],
    sources: tuple[str, ...],
    n_layers: Mapping[str, int],
    *,
    founders: str,
) -> tuple[LayerSequenceSpace, dict[str, Any]]:
    """Return the search space of the section, and the section with all defaults.

    Founders are the start model and, between its embeddings and head, all layers of each other
    model.

    Args:
        body: The section.
        sources: (K,) ids of the models whose layers are searched.
        n_layers: Source id -> number of its layers.
        founders: "all" or "parents", which are the same here, or "none".

    Raises:
        ConfigError: A key is wrong, or does not fit the models.
    """
    rules = read_rules(body)
    try:
        space = layer_sequence_space(sources, n_layers, rules)
    except ConfigError as error:
        raise ConfigError(f"merge.{error}") from None
    resolved = {"name": LAYER_SEQUENCE, **asdict(replace(rules, start=space.start))}
    if founders != "none":
        space = replace(space, founders=_founders(space))
    return space, resolved


def _founders(space: LayerSequenceSpace) -> tuple[Proposal, ...]:
    proposals = []
    for source, depth in space.n_layers.items():
        whole = LayerPlan.whole(source, depth)
        plan = LayerPlan(whole.layers, space.start, space.start)
        own = source == space.start
        origin = f"founder: {source}" if own else f"founder: layers of {source}"
        proposals.append(Proposal(recipe_of(plan, space.sources), (), origin))
    return tuple(proposals)
