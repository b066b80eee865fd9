"""Sources that are layers of parents in another order, for the card and for recipe.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from evomerge.core.layer_plan import LayerPlan, LayerSlot
from evomerge.export.transformed import Transformed


@dataclass(frozen=True)
class Stacked:
    """One stack of layers.

    Attributes:
        id: Name of the source in recipes.
        plan: Its layers, over ids of parents.
        digest: Content digest.
        of: Ids of all models that must be opened for it, the donor of the config first.
    """

    id: str
    plan: LayerPlan
    digest: str
    of: tuple[str, ...]

    @property
    def digests(self) -> Mapping[str, str]:
        """Its id -> content digest, as other computed sources have it."""
        return {self.id: self.digest}

    def rows(self) -> list[str]:
        """Return the source as a row of the card's table of parents."""
        how = f"{len(self.plan.layers)} layers: {', '.join(_stretches(self.plan.layers))}"
        return [f"| {_cell(self.id)} | {_cell(how)} | `{self.digest}` |"]

    def to_json(self) -> dict[str, Any]:
        """Return its entry of recipe.json."""
        return {"id": self.id, "plan": self.plan.to_json(), "digest": self.digest}


Computed = Transformed | Stacked


def _stretches(slots: tuple[LayerSlot, ...]) -> list[str]:
    """Return stretches of consecutive layers as text such as "math 0–15"."""
    stretches = [[slots[0]]]
    for before, slot in pairwise(slots):
        if (slot.source, slot.layer, slot.scale) == (before.source, before.layer + 1, before.scale):
            stretches[-1].append(slot)
        else:
            stretches.append([slot])
    texts = []
    for part in stretches:
        first, last = part[0], part[-1]
        span = f"{first.layer}–{last.layer}" if len(part) > 1 else f"{first.layer}"
        texts.append(f"{first.source} {span}" + (f" × {first.scale:g}" * (first.scale != 1.0)))
    return texts


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
