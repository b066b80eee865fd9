"""Recipe: the tiny object that says exactly how a merged model is computed.

A recipe is flat: it names sources (base, experts, cached transforms, noise). Only where evolution
from scratch would make it too long does it name earlier candidates instead (`core.ancestry`).
See docs/decisions/0001-flat-recipes.md.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, SupportsIndex

import numpy as np

from evomerge.core.ancestry import ancestor_name, is_ancestor, oldest_first
from evomerge.core.arrays import FloatArray, IntArray
from evomerge.errors import ConfigError

SEGMENTS = "segments"
FORMAT = 1

Setting = str | float | int | bool | None

_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True, eq=False)
class Recipe:
    """How to compute one merged model from its sources.

    Attributes:
        operator: Registered name of a merge operator.
        sources: (K,) ids of the sources, the base first when there is one.
        params: Parameter name -> one row per group, (G,) or (G, n).
        grouping: How tensors are put into groups (`core.grouping`), or "segments":
            rows then belong to the stretches between `breaks`.
        breaks: (S + 1,) element offsets in the flattened parameter order, from 0 to
            the number of merged elements; None unless grouping is "segments".
        settings: Constructor keywords of the operator that are not searched.
        ancestors: Source -> its recipe, for the sources that are ancestors; others are dropped. A
            recipe that is only looked at may lack some. No part of the digest: the ids are digests.
    """

    operator: str
    sources: tuple[str, ...]
    params: Mapping[str, FloatArray]
    grouping: str = "global"
    breaks: IntArray | None = None
    settings: Mapping[str, Setting] = field(default_factory=dict)
    ancestors: Mapping[str, Recipe] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Normalise arrays and refuse anything that is not a finite, consistent recipe."""
        params = {
            name: np.array(value, dtype=np.float64, order="C", ndmin=1)  # a copy: it is frozen
            for name, value in sorted(self.params.items())
        }
        for name, value in params.items():
            if value.ndim not in (1, 2) or value.shape[0] < 1:
                raise ConfigError(f"recipe: params.{name} must be (G,) or (G, n), is {value.shape}")
            if not np.isfinite(value).all():
                raise ConfigError(f"recipe: params.{name} holds a value that is not finite")
            value.flags.writeable = False
        rows = {value.shape[0] for value in params.values()}
        if len(rows) > 1:
            raise ConfigError(
                f"recipe: parameters disagree on the number of groups: {sorted(rows)}"
            )
        if (self.breaks is None) == (self.grouping == SEGMENTS):
            raise ConfigError("recipe: `breaks` is needed for grouping 'segments', and only there")
        if self.breaks is not None:
            breaks = np.array(self.breaks, dtype=np.int64)
            if (
                breaks.ndim != 1
                or len(breaks) < 2
                or breaks[0] != 0
                or (breaks[1:] <= breaks[:-1]).any()
            ):
                raise ConfigError("recipe: breaks must rise strictly from 0")
            if rows and rows != {len(breaks) - 1}:
                raise ConfigError(f"recipe: {len(breaks) - 1} segments but {sorted(rows)[0]} rows")
            breaks.flags.writeable = False
            object.__setattr__(self, "breaks", breaks)
        for name, setting in self.settings.items():
            is_finite = not isinstance(setting, float) or math.isfinite(setting)
            if not isinstance(setting, Setting) or not is_finite:
                raise ConfigError(
                    f"recipe: settings.{name} must be a text, a finite number, true, false or null"
                )
        object.__setattr__(self, "params", params)
        object.__setattr__(self, "settings", dict(sorted(self.settings.items())))
        object.__setattr__(self, "sources", tuple(self.sources))
        own = {name: self.ancestors[name] for name in self.named if name in self.ancestors}
        for name, recipe in own.items():
            if ancestor_name(recipe.digest()) != name:
                raise ConfigError(
                    f"recipe: what is given as {name} is another recipe, {recipe.digest()}; one of "
                    "them was changed"
                )
        object.__setattr__(self, "ancestors", own)

    @cached_property
    def named(self) -> tuple[str, ...]:
        """The sources that are ancestors."""
        return tuple(source for source in self.sources if is_ancestor(source))

    @property
    def n_groups(self) -> int:
        """Number of rows each parameter has (1 when there are no parameters)."""
        return next((value.shape[0] for value in self.params.values()), 1)

    def closure(self, known: Container[str] = ()) -> dict[str, Recipe]:
        """Return id -> recipe of all ancestors and theirs, the oldest first.

        Args:
            known: Ids to leave out, with what only they need.

        Raises:
            ConfigError: A recipe is missing.
        """
        found: dict[str, Recipe] = {}

        def needs(recipe: Recipe) -> list[str]:
            names = [name for name in recipe.named if name not in known]
            for name in names:
                if name not in recipe.ancestors:
                    raise ConfigError(f"recipe: the recipe of {name} is missing")
                found[name] = recipe.ancestors[name]
            return names

        order = oldest_first(needs(self), lambda name: needs(found[name]))
        return {name: found[name] for name in order}

    def lineage(self, known: Container[str] = ()) -> dict[str, Recipe]:
        """Return `closure` and the recipe itself, by the id it has as an ancestor."""
        return self.closure(known) | {ancestor_name(self.digest()): self}

    def bare(self) -> Recipe:
        """Return the recipe without its ancestors, for a reader that has them."""
        return replace(self, ancestors={}) if self.ancestors else self

    def to_json(self, held: Container[str] = ()) -> dict[str, Any]:
        """Return a JSON-ready mapping; floats keep all their bits through `repr`.

        Args:
            held: Ids of ancestors whose recipes the reader has already. Without any the mapping
                stands alone.
        """
        ancestors = {name: recipe.body() for name, recipe in self.closure(held).items()}
        return self.body() | ({"ancestors": ancestors} if ancestors else {})

    def body(self) -> dict[str, Any]:
        """Return `to_json` without ancestors."""
        body: dict[str, Any] = {
            "format": FORMAT,
            "operator": self.operator,
            "sources": list(self.sources),
            "grouping": self.grouping,
            "params": {name: value.tolist() for name, value in self.params.items()},
        }
        if self.breaks is not None:
            body["breaks"] = self.breaks.tolist()
        if self.settings:
            body["settings"] = dict(self.settings)
        return body

    @classmethod
    def from_json(
        cls,
        body: Mapping[str, Any],
        *,
        where: str = "recipe",
        known: Mapping[str, Recipe] = MappingProxyType({}),
        shallow: bool = False,
    ) -> Recipe:
        """Read what `to_json` wrote.

        Args:
            body: The mapping.
            where: For messages.
            known: Id -> recipe of ancestors that `body` need not have.
            shallow: Leave ancestors out: the recipe is only looked at.

        Raises:
            ConfigError: A key is missing, unknown or has the wrong type, an ancestor is missing
                or is not the one its id says; names `where`.
        """
        bodies = body.get("ancestors", {}) if isinstance(body, Mapping) else {}
        if not isinstance(bodies, Mapping):
            raise ConfigError(f"{where}: ancestors must be a mapping")
        own = body
        if isinstance(body, Mapping) and "ancestors" in body:
            own = {key: value for key, value in body.items() if key != "ancestors"}
        recipe = cls._of_body(own, where)
        if shallow or not recipe.named:
            return recipe
        read: dict[str, Recipe] = {}

        def needs(name: str) -> tuple[str, ...]:
            if name in known:
                read[name] = known[name]
                return ()
            if name not in bodies:
                raise ConfigError(f"{where}: the recipe of {name} is missing from `ancestors`")
            if name not in read:
                read[name] = cls._of_body(bodies[name], f"{where}: ancestors.{name}")
            return read[name].named

        try:
            for name in oldest_first(recipe.named, needs):
                if name not in known:
                    read[name] = replace(read[name], ancestors=read)
            return replace(recipe, ancestors=read)
        except ConfigError as error:
            text = str(error)
            raise ConfigError(text if text.startswith(where) else _at(where, text)) from None

    @classmethod
    def _of_body(cls, body: Mapping[str, Any], where: str) -> Recipe:
        known = {"format", "operator", "sources", "grouping", "params", "breaks", "settings"}
        if not isinstance(body, Mapping):
            raise ConfigError(f"{where}: expected a mapping, got {type(body).__name__}")
        extra = set(body) - known
        if extra:
            raise ConfigError(f"{where}: unknown key {sorted(extra)[0]!r}; known: {sorted(known)}")
        if body.get("format") != FORMAT:
            raise ConfigError(f"{where}: format is {body.get('format')!r}, expected {FORMAT}")
        try:
            sources = tuple(body["sources"])
            if not sources or not all(isinstance(source, str) for source in sources):
                raise TypeError("sources must be a non-empty list of names")
            if not isinstance(body["operator"], str) or not isinstance(body["grouping"], str):
                raise TypeError("operator and grouping must be strings")
            params = {str(k): np.asarray(v, dtype=np.float64) for k, v in body["params"].items()}
            raw = body.get("breaks")
            if raw is not None and not all(type(offset) is int for offset in raw):
                raise TypeError("breaks must be integers")
            breaks = None if raw is None else np.asarray(raw, dtype=np.int64)
            settings = dict(body.get("settings", {}))
            return cls(body["operator"], sources, params, body["grouping"], breaks, settings)
        except ConfigError as error:
            raise ConfigError(_at(where, str(error))) from None
        except KeyError as error:
            raise ConfigError(f"{where}: key {error} is missing") from None
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ConfigError(f"{where}: {error}") from None

    def digest(self) -> str:
        """Return a 16-hex-digit digest; equal recipes, and only they, have equal digests.

        Hashes the arrays' bytes rather than the JSON text: a recipe of 200 segments takes
        microseconds instead of a millisecond.
        """
        return self._digest

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        """Pickle ancestors side by side: one within the other, they would exhaust the stack."""
        if self.ancestors:
            return Recipe.from_json, (self.to_json(),)
        return super().__reduce_ex__(protocol)

    @cached_property
    def _digest(self) -> str:
        shapes = {name: value.shape for name, value in self.params.items()}
        head = [FORMAT, self.operator, self.sources, self.grouping, self.settings, shapes]
        hasher = hashlib.blake2b(canonical_json(head).encode(), digest_size=8)
        for value in self.params.values():
            hasher.update((value + 0.0).astype("<f8", copy=False).tobytes())  # -0.0 is 0.0
        if self.breaks is not None:
            hasher.update(self.breaks.astype("<i8", copy=False).tobytes())
        return hasher.hexdigest()


def _at(where: str, text: str) -> str:
    """Return a message about a recipe with the place it was read from."""
    return f"{where}: {text.removeprefix('recipe: ') if where.endswith('recipe') else text}"


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys and no spaces; refuses NaN and infinity."""
    return _CANONICAL.encode(value)
