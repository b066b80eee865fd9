"""The merges that are timed: our recipe, and the same one as a mergekit config.

Methods have the settings that make them mergekit's, but for three things. The thresholds of TIES
and breadcrumbs come from tables, which keep up to n / 2**15 elements more or fewer ("ties_exact"
does not). DARE and DELLA drop other random elements with the same probabilities, and divide what
is kept by its probability ("dare_ties_l1" restores the sum of magnitudes, as mergekit does).
"ties_global" is the paper's TIES, which mergekit has not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from evomerge.core.recipe import Recipe, Setting

BASE = "base"
_MERGEKIT_NAMES: Mapping[str, str] = {"select": "select_topk"}
Models = Literal["all", "experts", "base and experts", "two experts", "base and two experts"]


@dataclass(frozen=True)
class MergeCase:
    """One merge method with the settings it is timed with.

    Attributes:
        name: What it is called in the results.
        operator: Registered name of our merge method.
        mergekit: mergekit's `merge_method`; None when it has none of that kind.
        models: Which models are merged; "all" weighs the base like an expert.
        numbers: Parameters that are one number -> value; our names.
        settings: Settings of our method.
        flags: mergekit's global parameters beside the numbers.
        has_weights: Whether models are weighed.
    """

    name: str
    operator: str
    mergekit: str | None
    models: Models = "base and experts"
    numbers: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, Setting] = field(default_factory=dict)
    flags: Mapping[str, bool | float] = field(default_factory=dict)
    has_weights: bool = True

    def sources(self, n_experts: int) -> tuple[str, ...]:
        """Return the ids of the models it reads."""
        n_used = 2 if "two" in self.models else n_experts
        experts = tuple(f"expert{k}" for k in range(1, n_used + 1))
        return experts if self.models in ("experts", "two experts") else (BASE, *experts)

    def weights(self, n_experts: int, candidate: int = 0) -> list[float]:
        """Return one weight per weighed model; candidates differ."""
        n_models = len(self.sources(n_experts)) - (1 if self.models.startswith("base") else 0)
        return [0.5 / n_models + 0.01 * ((k + candidate) % 7) for k in range(n_models)]

    def recipe(self, n_experts: int, candidate: int = 0) -> Recipe:
        """Return candidate number `candidate`: weights and density differ between them."""
        params = {key: np.array([value]) for key, value in self.numbers.items()}
        if "density" in params:
            params["density"] = params["density"] - 0.003 * (candidate % 30)
        if self.has_weights:
            params["weights"] = np.array([self.weights(n_experts, candidate)])
        return Recipe(self.operator, self.sources(n_experts), params, settings=self.settings)

    def mergekit_config(self, n_experts: int, folders: Mapping[str, str]) -> dict[str, Any]:
        """Return candidate 0 as mergekit's config, computed and stored in bfloat16.

        Args:
            n_experts: Experts of the set.
            folders: Source id -> folder.
        """
        sources = self.sources(n_experts)
        has_base = self.models.startswith("base")
        weighed = sources[1:] if has_base else sources
        per_model = ("density", "gamma", "epsilon")
        named = {_MERGEKIT_NAMES.get(key, key): value for key, value in self.numbers.items()}
        models = []
        for source, weight in zip(weighed, self.weights(n_experts), strict=True):
            own = {key: value for key, value in named.items() if key in per_model}
            if self.has_weights and self.mergekit != "karcher":
                own["weight"] = weight
            models.append({"model": folders[source]} | ({"parameters": own} if own else {}))
        shared = {key: value for key, value in named.items() if key not in per_model}
        config: dict[str, Any] = {
            "merge_method": self.mergekit,
            "models": models,
            "parameters": {**shared, **self.flags},
            "dtype": "bfloat16",
        }
        if has_base or self.mergekit == "slerp":
            config["base_model"] = folders[sources[0]]
        return config


def _cases() -> Sequence[MergeCase]:
    like: Mapping[str, Setting] = {"compat": "mergekit"}
    added: Mapping[str, Setting] = {"vectors": "include"}
    voted: Mapping[str, Setting] = {**added, "sign": "weighted", "divisor": "signed_weights"}
    weighted, normalized = {"normalize": False}, {"normalize": True}
    sparse = {"density": 0.5}
    band = {"density": 0.9, "gamma": 0.01}
    drop = {"density": 0.5, "epsilon": 0.15}
    steps: Mapping[str, int | float] = {"max_iter": 10, "tol": 1e-5}

    def with_base(
        name: str,
        numbers: Mapping[str, float],
        settings: Mapping[str, Setting],
        flags: Mapping[str, bool | float],
    ) -> MergeCase:
        return MergeCase(name, name, name, numbers=numbers, settings=settings, flags=flags)

    return (
        MergeCase("linear", "linear", "linear", "all", flags=normalized),
        with_base("task_arithmetic", {}, {}, weighted),
        MergeCase("slerp", "slerp", "slerp", "two experts", {"t": 0.4}, like, has_weights=False),
        MergeCase("nuslerp", "nuslerp", "nuslerp", "base and two experts"),
        MergeCase("nlerp", "nlerp", "multislerp", "experts", settings=like),
        MergeCase("karcher", "karcher", "karcher", "experts", {}, {**like, **steps}, flags=steps),
        MergeCase("model_stock", "model_stock", "model_stock", settings=like, has_weights=False),
        with_base("ties", sparse, {**voted, "threshold": "tensor"}, normalized),
        MergeCase("ties_exact", "ties", "ties", numbers=sparse, settings=like, flags=normalized),
        MergeCase("ties_global", "ties", None, numbers=sparse),
        with_base("dare_linear", sparse, added, weighted),
        with_base("dare_ties", sparse, voted, normalized),
        MergeCase(
            "dare_ties_l1",
            "dare_ties",
            "dare_ties",
            numbers=sparse,
            settings={**voted, "rescale": "l1"},
            flags=normalized,
        ),
        with_base("della_linear", drop, added, weighted),
        with_base("della", drop, voted, normalized),
        with_base("breadcrumbs", band, added, weighted),
        with_base("breadcrumbs_ties", band, voted, normalized),
        MergeCase("sce", "sce", "sce", numbers={"select": 0.1}, settings=added, has_weights=False),
    )


CASES: Mapping[str, MergeCase] = {case.name: case for case in _cases()}
"""Name in the results -> the merge."""
