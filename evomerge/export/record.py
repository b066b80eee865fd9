"""recipe.json: what an export was computed from, enough to compute it again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import evomerge
from evomerge.core.model_space import ModelSpace
from evomerge.core.recipe import Recipe
from evomerge.export.card import CardFacts
from evomerge.export.stacked import Stacked
from evomerge.export.transformed import Transformed
from evomerge.merging.source import TensorSource


def recipe_record(
    recipe: Recipe,
    space: ModelSpace,
    sources: Mapping[str, TensorSource],
    card: CardFacts,
    *,
    weights_digest: str,
    dtype: str | None,
) -> dict[str, Any]:
    """Return the content of recipe.json."""
    by_id = {parent.id: parent for parent in card.parents}
    behind = {name for item in card.transformed for name in item.of} - {*space.sources}
    # All models: they decide what is merged and what copied.
    models = [source for source in space.sources if source in by_id]
    models += [name for name in by_id if name in behind]
    stacks = [item.to_json() for item in card.transformed if isinstance(item, Stacked)]
    made = [
        {**item.entry, "sources": dict(item.digests)}
        for item in card.transformed
        if isinstance(item, Transformed)
    ]
    return {
        "evomerge": evomerge.__version__,
        "candidate": card.candidate_id,
        "run": card.run,
        "recipe": recipe.to_json(),
        "sources": [
            {
                "id": source,
                "model": by_id[source].model,
                "revision": by_id[source].revision,
                "lora": by_id[source].lora,
                "digest": (sources[source] if source in sources else by_id[source]).digest,
            }
            for source in models
        ],
        **({"transforms": made} if made else {}),
        **({"stacks": stacks} if stacks else {}),
        "has_base": space.has_base,
        "donor": models[0],
        "dtype": dtype,
        "weights_digest": weights_digest,
        **({"scores": [row.to_json() for row in card.scores]} if card.scores else {}),
    }


def check_parents(card: CardFacts, space: ModelSpace) -> None:
    """Raise ValueError if the card does not know a source of the space."""
    known = {parent.id for parent in card.parents}
    missing = {*space.sources} - known - {id for item in card.transformed for id in item.digests}
    if missing:
        raise ValueError(f"the card's parents lack {min(missing)!r}, a source of the space")
