"""Gene: the range of one operator parameter, written beside the parameter itself.

A merge operator annotates its fields (`weights: tuple[Annotated[float, Gene(-1.0, 1.5)], ...]`);
the same annotation validates values and defines the default search range.
"""

from __future__ import annotations

import typing
from dataclasses import MISSING, dataclass, fields
from functools import cache
from typing import Any, get_args, get_origin

from evomerge.errors import ConfigError


@dataclass(frozen=True)
class Gene:
    """Search range of a parameter, and the wider range in which a value is legal.

    Attributes:
        low: Lower end of the default search range.
        high: Upper end of the default search range.
        minimum: Smallest legal value (None: no limit).
        maximum: Largest legal value (None: no limit).
        initial: Where a search starts from when nothing says otherwise (None: the default; with
            none, 1 / width for one value per source, else the middle).
    """

    low: float
    high: float
    minimum: float | None = None
    maximum: float | None = None
    initial: float | None = None

    def check(self, value: float, where: str) -> None:
        """Raise ConfigError, naming `where`, if `value` is not legal."""
        if self.minimum is not None and value < self.minimum:
            raise ConfigError(f"{where} is {value:g}, must be at least {self.minimum:g}")
        if self.maximum is not None and value > self.maximum:
            raise ConfigError(f"{where} is {value:g}, must be at most {self.maximum:g}")


@dataclass(frozen=True)
class GeneField:
    """One searchable field of an operator class."""

    name: str
    gene: Gene
    per_source: bool  # one value per weighted source, or one in all
    default: float | None  # None: must be given or searched


@cache
def gene_fields(operator: type) -> tuple[GeneField, ...]:
    """Return the searchable fields of an operator dataclass, in declaration order."""
    hints = typing.get_type_hints(operator, include_extras=True)
    found: list[GeneField] = []
    for item in fields(operator):
        hint = hints[item.name]
        per_source = get_origin(hint) is tuple
        inner = get_args(hint)[0] if per_source else hint
        gene = next((m for m in getattr(inner, "__metadata__", ()) if isinstance(m, Gene)), None)
        if gene is None:
            continue
        default: Any = None if item.default is MISSING else item.default
        found.append(GeneField(item.name, gene, per_source, default))
    return tuple(found)


@cache
def setting_names(operator: type) -> tuple[str, ...]:
    """Return the fields of an operator that are fixed settings, not genes."""
    genes = {item.name for item in gene_fields(operator)}
    return tuple(item.name for item in fields(operator) if item.name not in genes)
