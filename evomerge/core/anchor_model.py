"""AnchorModel: guesses the scores of a candidate that was scored on its anchors alone.

Shapes: N examples, n anchors, P models that are fully scored, the first K of them the parents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from evomerge.core.anchors import (
    Anchors,
    clustered_anchors,
    entropy_anchors,
    estimated_scores,
    random_anchors,
)
from evomerge.core.arrays import FloatArray
from evomerge.core.item_response import Items, fit_items, fit_mixture

DIMENSIONS = 5  # of the item response model: more than most data sets have kinds of examples
PICKS = ("random", "clustered", "item_clusters", "entropy")

# Name -> how much of the estimate is the weighted mean of the anchors; see `estimated_scores`.
ESTIMATORS: Mapping[str, float] = {"weighted": 1.0, "mp_irt": 0.0, "gmp_irt": 0.5}


@dataclass(frozen=True, eq=False)
class AnchorModel:
    """What is known of the examples from models that are fully scored.

    Attributes:
        sizes: Task -> number of examples.
        direct: Share of the estimate that is the anchors' weighted mean.
        low: (N,) score that counts as 0.
        span: (N,) difference to the score that counts as 1.
        mean: (N,) mean score of the models, in [0, 1].
        items: Parameters of all examples; None where the mean of the models is the guess.
        parents: (K, d) abilities of the parents.
    """

    sizes: Mapping[str, int]
    direct: float
    low: FloatArray
    span: FloatArray
    mean: FloatArray
    items: Items | None
    parents: FloatArray

    @classmethod
    def fit(
        cls,
        scores: FloatArray,
        n_parents: int,
        sizes: Mapping[str, int],
        estimator: str,
        dimensions: int = DIMENSIONS,
    ) -> AnchorModel:
        """Return the model that some full scores give.

        Args:
            scores: (P, N) of at least two models, parents first.
            n_parents: K: candidates are taken for mixtures of so many.
            sizes: Task -> number of examples.
            estimator: "weighted" (no item response model), "mp_irt" or "gmp_irt".
            dimensions: Abilities of the item response model.
        """
        low, span = unit_range(scores, sizes)
        unit = (scores - low) / span
        items, abilities = None, np.zeros((0, 0))
        if estimator != "weighted":
            items, abilities = fit_items(unit, dimensions)
        parents = abilities[:n_parents]
        return cls(sizes, ESTIMATORS[estimator], low, span, unit.mean(axis=0), items, parents)

    def complete(self, anchors: Anchors, row: FloatArray) -> FloatArray:
        """Return (N,) scores: those of a row that are scored, and guesses for the others.

        Args:
            anchors: All of them are scored.
            row: (N,) scores, NaN where there is none.
        """
        unit = np.clip((row - self.low) / self.span, 0.0, 1.0)
        guesses = self.mean
        if self.items is not None:
            known = np.flatnonzero(~np.isnan(unit))
            mixture = fit_mixture(self.items.at(known), self.parents, unit[known])
            guesses = self.items.probabilities((mixture @ self.parents)[None])[0]
        full = estimated_scores(anchors, unit, guesses, self.sizes, self.direct)
        result: FloatArray = np.where(np.isnan(row), self.low + self.span * full, row)
        return result


def pick_anchors(
    how: str, scores: FloatArray, sizes: Mapping[str, int], n: int, rng: np.random.Generator
) -> Anchors:
    """Return n anchors.

    Args:
        how: "random"; "clustered" by the models' scores; "item_clusters" by the parameters of an
            item response model of them; or "entropy".
        scores: (P, N) full scores of at least two models.
        sizes: Task -> number of examples.
        n: How many anchors.
        rng: Draws, or seeds the clusters.
    """
    if how == "random":
        return random_anchors(sizes, n, rng)
    low, span = unit_range(scores, sizes)
    unit = (scores - low) / span
    if how == "entropy":
        return entropy_anchors(unit, sizes, n, rng)
    features = unit.T
    if how == "item_clusters":
        items, _ = fit_items(unit, DIMENSIONS)
        features = np.column_stack([items.slopes, items.offsets])
    return clustered_anchors(features, sizes, n, rng)


def unit_range(scores: FloatArray, sizes: Mapping[str, int]) -> tuple[FloatArray, FloatArray]:
    """Return (N,) the score that counts as 0, and (N,) how far above it 1 is.

    0 and 1 themselves for tasks whose scores lie between them, else the lowest and the highest
    score that any model has on an example of the task.
    """
    low, span = np.zeros(scores.shape[1]), np.ones(scores.shape[1])
    start = 0
    for task in sorted(sizes):
        own = slice(start, start + sizes[task])
        start += sizes[task]
        least, most = float(scores[:, own].min()), float(scores[:, own].max())
        if least < 0.0 or most > 1.0:
            low[own], span[own] = least, max(most - least, 1e-12)
    return low, span
