"""Sources that a transform computes from parents, for the card and for recipe.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Transformed:
    """Sources that one transform makes of some parents.

    Attributes:
        entry: Its entry of the `transforms:` section, with all defaults.
        of: Ids of those parents.
        digests: Id of each source -> address of its content.
    """

    entry: Mapping[str, Any]
    of: tuple[str, ...]
    digests: Mapping[str, str]

    def rows(self) -> list[str]:
        """Return the sources as rows of the card's table of parents."""
        how = f"computed: {self.entry['name']} of {', '.join(self.of)}"
        return [
            f"| {_cell(source)} | {_cell(how)} | `{digest}` |"
            for source, digest in self.digests.items()
        ]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
