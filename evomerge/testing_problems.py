"""Search problems without models, for the conformance suite of search algorithms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from evomerge.core.ancestry import ancestor_name
from evomerge.core.arrays import FloatArray, ScoreArray
from evomerge.core.candidate import Proposal
from evomerge.core.choice_space import ChoiceSpace, Space
from evomerge.core.linear_span import LinearSpan
from evomerge.core.noise import noise_seed
from evomerge.core.objective import Objective, Objectives
from evomerge.core.recipe import Recipe, Setting
from evomerge.core.search_space import SearchedParam, SearchSpace


@dataclass(frozen=True)
class LinearProblem:
    """A search problem without models: three vectors of 64 numbers and their linear merges.

    Attributes:
        space: From `linear_problem`: weights of a base and two experts in [-0.5, 1.5], one group,
            with span and founders (each source, and their mean). From `choice_problem`: these,
            or task arithmetic, or each element's largest change.
        objectives: Two, "first" and "second", one task each.
        vectors: (K, D) the sources.
    """

    space: Space
    objectives: Objectives
    vectors: FloatArray

    def merge(self, recipe: Recipe) -> FloatArray:
        """Return the (D,) merged vector of a recipe of `space`, or of a "linear" one."""
        if recipe.operator != "linear":
            deltas = self.vectors[1:] - self.vectors[0]
            if recipe.operator == "task_arithmetic":
                change: FloatArray = recipe.params["weights"][0] @ deltas
            else:
                change = np.take_along_axis(deltas, np.abs(deltas).argmax(axis=0)[None], 0)[0]
            changed: FloatArray = self.vectors[0] + recipe.params["lambda_"][0] * change
            return changed
        models: dict[str, FloatArray] = {}
        for name, part in recipe.lineage().items():
            models[name] = self._sum(part, models)
        return models[ancestor_name(recipe.digest())]

    def _sum(self, recipe: Recipe, ancestors: Mapping[str, FloatArray]) -> FloatArray:
        weights = recipe.params["weights"]
        breaks = [0, self.vectors.shape[1]] if recipe.breaks is None else recipe.breaks
        rows = np.repeat(weights, np.diff(np.asarray(breaks)), axis=0)
        made: list[FloatArray] = []
        for name in recipe.sources:
            seed = noise_seed(name)
            if seed is not None:
                stream = np.random.Generator(np.random.Philox(key=seed))
                made.append(stream.normal(size=self.vectors[0].shape))
            elif name in ancestors:
                made.append(ancestors[name])
        merged: FloatArray = np.einsum("dk,kd->d", rows, np.stack([*self.vectors, *made]))
        return merged

    def scores(self, recipe: Recipe) -> dict[str, ScoreArray]:
        """Return 16 zeros or ones for "first" and 8 numbers in (0, 1] for "second"."""
        merged = self.merge(recipe)
        pieces = merged.reshape(16, -1).sum(axis=1)
        goals = (self.vectors[1:].reshape(2, 16, -1).sum(axis=2)).max(axis=0)
        near = np.exp(-((merged - self.vectors.mean(axis=0)).reshape(8, -1) ** 2).mean(axis=1))
        return {
            "first": (pieces > 0.6 * goals).astype(np.float32),
            "second": near.astype(np.float32),
        }


def linear_problem() -> LinearProblem:
    """Return the problem that `check_search_algorithm` uses by default."""
    sources = ("base", "low", "high")
    rng = np.random.Generator(np.random.Philox(key=7))
    base = rng.normal(size=64)
    low = base + np.where(np.arange(64) < 32, rng.uniform(0.5, 1.0, 64), 0.1 * rng.normal(size=64))
    high = base + np.where(np.arange(64) < 32, 0.1 * rng.normal(size=64), rng.uniform(0.5, 1.0, 64))
    vectors = np.stack([base, low, high])
    basis = np.stack([base, low - base, high - base])
    grams = np.einsum("id,jd->dij", basis, basis)
    settings: dict[str, Setting] = {"normalize": False}

    def founder(name: str, weights: list[float]) -> Proposal:
        recipe = Recipe("linear", sources, {"weights": np.array([weights])}, settings=settings)
        return Proposal(recipe, origin=f"founder: {name}")

    space = SearchSpace(
        "linear",
        sources,
        "global",
        1,
        (SearchedParam("weights", 3, True, -0.5, 1.5, 1.0 / 3.0),),
        settings=settings,
        span=LinearSpan.from_block_grams(sources, 64, 1, grams),
        founders=(
            founder("base", [1.0, 0.0, 0.0]),
            founder("low", [0.0, 1.0, 0.0]),
            founder("high", [0.0, 0.0, 1.0]),
            founder("mean", [1.0 / 3.0] * 3),
        ),
    )
    items = (Objective("first", {"first": 1.0}), Objective("second", {"second": 1.0}))
    return LinearProblem(space, Objectives(items), vectors)


def choice_problem() -> LinearProblem:
    """Return the same problem with three merge methods to choose from, each with its parameters."""
    problem = linear_problem()
    assert isinstance(problem.space, SearchSpace)
    linear = replace(problem.space, span=None, founders=())
    scale = SearchedParam("lambda_", 1, False, 0.0, 1.5, 1.0)
    weights = SearchedParam("weights", 2, True, -1.0, 1.5, 0.5)
    arithmetic = replace(linear, operator="task_arithmetic", searched=(weights, scale))
    largest = replace(linear, operator="magmax", searched=(scale,), settings={})
    branches = (linear, arithmetic, largest)
    first = [Proposal(branch.decode(branch.initial())) for branch in branches[1:]]
    founders = (*problem.space.founders, *first)
    labels = tuple(branch.operator for branch in branches)
    return replace(problem, space=ChoiceSpace(branches, labels, founders))
