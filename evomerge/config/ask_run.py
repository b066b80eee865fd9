"""`evomerge ask`: the merge a run's surrogate expects to be best for given weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.config.cache import usable_cache
from evomerge.config.models import open_models
from evomerge.config.parents import parents_of, transformed_of
from evomerge.config.results import RunResults
from evomerge.config.surrogate import load_surrogate
from evomerge.config.workers import load_derived, read_sources
from evomerge.core.pareto import ParetoFront
from evomerge.core.picking import pick
from evomerge.core.recipe import Recipe
from evomerge.export import CardFacts, ExportResult, export_candidate
from evomerge.runtime.placement import pick_device
from evomerge.seeding import generator
from evomerge.storage.run_store import RunFolder

FRONT_SIZE = 200
GENERATIONS = 80


@dataclass(frozen=True, eq=False)
class Answer:
    """What the surrogate expects; nothing of it was scored.

    Attributes:
        recipe: The merge.
        predicted: Objective -> expected value.
        std: Objective -> posterior standard deviation of that.
        nearest: Id of the nearest scored candidate.
        nearest_values: Objective -> what that one scored.
        distance: To it, in the searched ranges, each taken as 1 wide.
        error: Objective -> errors of the surrogate, see `ParetoSurrogate.error`.
        n_scored: How many scored candidates the surrogate was fitted to.
        n_estimated: How many of them a race scored on some examples only; what the others would
            have scored is its estimate.
        n_newer: How many were scored since.
    """

    recipe: Recipe
    predicted: Mapping[str, float]
    std: Mapping[str, float]
    nearest: int
    nearest_values: Mapping[str, float]
    distance: float
    error: Mapping[str, Mapping[str, float | int | None]]
    n_scored: int
    n_estimated: int
    n_newer: int

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        return {
            "predicted": dict(self.predicted),
            "std": dict(self.std),
            "coefficients": {name: rows.tolist() for name, rows in self.recipe.params.items()},
            "sources": list(self.recipe.sources),
            "recipe": self.recipe.digest(),
            "nearest": {
                "candidate": self.nearest,
                "distance": self.distance,
                "objectives": dict(self.nearest_values),
            },
            "error": {name: dict(row) for name, row in self.error.items()},
            "fitted_to": self.n_scored,
            "estimated": self.n_estimated,
            "newer": self.n_newer,
        }


def ask_run(results: RunResults, weights: str) -> Answer:
    """Return what a run's surrogate expects to be best; the same answer each time.

    The point of the surrogate's front with the least augmented Tchebycheff distance to the ideal.

    Args:
        results: The run.
        weights: "objective=number,…"; objectives not named weigh 0.

    Raises:
        RunError: The run has no surrogate.
        ConfigError: The weights are malformed, or name no objective.
    """
    surrogate, n_newer = load_surrogate(results)
    rng = generator(results.config.seed, "ask")
    points, values = surrogate.front(rng, size=FRONT_SIZE, generations=GENERATIONS)
    names = surrogate.names
    chosen = pick(ParetoFront.of(np.arange(len(points)), values), names, f"weights {weights}")[0]
    point = points[chosen]
    std = surrogate.std(point[None])[0]
    row, distance = surrogate.nearest(point)
    whole = {int(event["id"]) for event in results.scored}
    return Answer(
        recipe=surrogate.space.decode(point),
        predicted=dict(zip(names, values[chosen].tolist(), strict=True)),
        std=dict(zip(names, std.tolist(), strict=True)),
        nearest=int(surrogate.candidate_ids[row]),
        nearest_values=dict(zip(names, surrogate.values[row].tolist(), strict=True)),
        distance=distance,
        error=surrogate.error(),
        n_scored=len(surrogate.points),
        n_estimated=sum(int(i) not in whole for i in surrogate.candidate_ids),
        n_newer=n_newer,
    )


def export_answer(folder: RunFolder, answer: Answer, weights: str, out: Path) -> ExportResult:
    """Write the merge of an answer as a Hugging Face folder; its card says it was not scored.

    Args:
        folder: The run.
        answer: From `ask_run`.
        weights: What was asked for, for the card.
        out: New folder.

    Raises:
        SourceError: A model changed since the run began.
        RunError: The folder cannot be written.
    """
    results = RunResults(folder)
    config = results.config
    models = open_models(config, known=read_sources(folder))
    derived, _ = load_derived(folder, models, usable_cache(config.runtime.cache))
    expected = ", ".join(f"{name} {value:.4f}" for name, value in answer.predicted.items())
    note = (
        f"Read off the surrogate of run {config.name} for weights {weights}; this merge itself "
        f"was not scored. Expected: {expected}. The nearest scored candidate is {answer.nearest}."
    )
    card = CardFacts(
        title=out.name,
        parents=parents_of(models.record),
        transformed=transformed_of(models.virtual),
        n_candidates=len(results.scored),
        algorithm=str(config.algorithm["name"]),
        seed=config.seed,
        run=config.name,
        notes=(note,),
    )
    return export_candidate(
        out,
        recipe=answer.recipe,
        space=models.space,
        sources=models.sources,
        derived=derived,
        donor=models.donor,
        card=card,
        device=pick_device(config.runtime.device),
    )
