"""manifest.json: which tensor of a merged model takes which path (operators.md, section 5)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from evomerge.core.model_space import ModelSpace
from evomerge.core.recipe import Recipe
from evomerge.merging.plan import plan_paths
from evomerge.merging.source import TensorSource
from evomerge.merging.virtual_source import VirtualSource

FORMAT = 1


def manifest_of(
    recipe: Recipe, space: ModelSpace, sources: Mapping[str, TensorSource]
) -> dict[str, Any]:
    """Return the content of manifest.json.

    Args:
        recipe: The merge; only its method and settings matter, not its parameters' values.
        space: The aligned models.
        sources: Every one of them by id.

    Returns:
        JSON-ready: `merge`, the method; `tensors`, name -> "merged", "fallback: <how>" or
        "copied: <reason>"; `left_out`, name -> why the merged model lacks it; `transforms`, one
        entry per transform with its `sources` and, for the tensors it touches, name ->
        "transformed" or "fallback: <how>".

    Raises:
        ConfigError: The recipe does not fit the space.
    """
    runs: dict[int, dict[str, Any]] = {}
    for name in recipe.sources:
        source = sources.get(name)  # noise has none
        if isinstance(source, VirtualSource):
            entry = runs.setdefault(
                id(source.run),
                {"transform": source.run.name, "sources": [], "tensors": source.run.paths()},
            )
            entry["sources"].append(name)
    return {
        "format": FORMAT,
        "merge": recipe.operator,
        "tensors": plan_paths(recipe, space),
        "left_out": dict(space.left_out),
        "transforms": list(runs.values()),
    }


def summary_of(paths: Mapping[str, str]) -> str:
    """Return one line on a manifest's `tensors`, as "291 tensors: 202 merged, 89 copied".

    Fallbacks come with how they are merged; what nothing happens to is not mentioned.
    """
    kinds = Counter(path.partition(":")[0] for path in paths.values())
    reasons = Counter(path for path in paths.values() if path.startswith("fallback: "))
    how = [path.removeprefix("fallback: ") for path in reasons]
    if len(how) > 1:
        how = [f"{n} {text}" for text, n in zip(how, reasons.values(), strict=True)]
    parts = [
        f"{n} {kind}" + (f" ({'; '.join(how)})" if kind == "fallback" else "")
        for kind in ("merged", "transformed", "fallback", "copied")
        if (n := kinds[kind])
    ]
    return f"{len(paths)} tensors: {', '.join(parts)}"
