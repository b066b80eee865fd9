"""Nested MAP's design: pairs of models are merged up a tree, two coefficients at a time.

Shapes: W weights (one per model), M objectives, N examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from evomerge.core.arrays import FloatArray, ScoreArray
from evomerge.core.picking import RHO
from evomerge.core.quadratic_surrogate import fit_quadratic, suitable_link
from evomerge.core.sample_design import latin_square

_GRID = 33  # per share, when a pair's best shares are read off their surrogate


@dataclass(frozen=True, eq=False)
class Scored:
    """What is known of one point: (M,) objective values and (N,) per-example scores."""

    values: FloatArray
    scores: ScoreArray


@dataclass(frozen=True, eq=False)
class Node:
    """One model of the tree.

    Attributes:
        weights: (W,) of the models it is made of.
        preference: (M,) what it is for: the sum over its members, not normalised.
        scores: (N,) how it behaves.
    """

    weights: FloatArray
    preference: FloatArray
    scores: ScoreArray


def merge_up(
    n_weights: int,
    look_up: Callable[[FloatArray], Scored | None],
    n_samples: int,
    rng: np.random.Generator,
) -> Iterator[FloatArray]:
    """Yield (k, W) weights to score; once they are told, the next ones follow from them.

    The parents that are not scored yet; then, for the two models whose per-example scores are
    closest, a spread of shares, and the best merge that a quadratic in the two shares predicts,
    by augmented Tchebycheff distance under the pair's preference. That merge replaces the pair,
    until one model is left. A parent that cannot be scored stays out of the tree.

    Args:
        n_weights: W.
        look_up: (W,) weights -> what is known of them.
        n_samples: Shares scored per pair.
        rng: Source of all randomness.

    Source: Li et al. 2024 (nested MAP), arXiv:2406.07529; algorithms.md §4. Differs: pairs are
    closest in behaviour, not in one metric each; every node is measured.
    """
    parents = np.eye(n_weights)
    missing = [row for row in parents if look_up(row) is None]
    if missing:
        yield np.array(missing)
    known = [(row, found) for row in parents if (found := look_up(row)) is not None]
    if not known:
        return
    preferences = _preferences(np.array([found.values for _, found in known]))
    nodes = [
        Node(row, preference, found.scores)
        for (row, found), preference in zip(known, preferences, strict=True)
    ]
    while len(nodes) > 1:
        i, j = _closest(nodes)
        a, b = nodes[i], nodes[j]
        middle = np.full((1, 2), 0.5)
        spread = latin_square(n_samples - 1, np.concatenate([np.eye(2), middle]), rng)
        shares = np.concatenate([middle, spread])
        pair = np.stack([a.weights, b.weights])
        yield shares @ pair
        preference = a.preference + b.preference
        told = [(share, look_up(share @ pair)) for share in [*np.eye(2), *shares]]
        best = _best_share([(s, found.values) for s, found in told if found], preference)
        yield (best @ pair)[None]
        found = look_up(best @ pair)
        left = [node for k, node in enumerate(nodes) if k not in (i, j)]
        if found is None:  # it failed: the better of the two stands for both
            kept = a if a.scores.mean() >= b.scores.mean() else b
            nodes = [*left, Node(kept.weights, preference, kept.scores)]
        else:
            nodes = [*left, Node(best @ pair, preference, found.scores)]


def _preferences(values: FloatArray) -> FloatArray:
    """Return (E, M) how far each model's values lie above the mean; ones where none does."""
    width = np.ptp(values, axis=0)
    gain = np.maximum(values - values.mean(axis=0), 0.0) / np.where(width > 0.0, width, 1.0)
    none = gain.sum(axis=1) <= 0.0
    gain[none] = 1.0 / gain.shape[1]
    preferences: FloatArray = gain / gain.sum(axis=1, keepdims=True)
    return preferences


def _closest(nodes: list[Node]) -> tuple[int, int]:
    """Return the two nodes with the least mean absolute difference of scores; i < j."""
    pairs = [(i, j) for j in range(len(nodes)) for i in range(j)]
    return min(
        pairs,
        key=lambda ij: float(
            np.abs(nodes[ij[0]].scores - nodes[ij[1]].scores).mean(dtype=np.float64)
        ),
    )


def _best_share(told: list[tuple[FloatArray, FloatArray]], preference: FloatArray) -> FloatArray:
    """Return the (2,) shares that a quadratic through the told ones likes best."""
    shares = np.array([share for share, _ in told])
    values = np.array([value for _, value in told])
    axis = np.linspace(0.0, 1.0, _GRID)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    columns = [
        fit_quadratic(shares, column, suitable_link(column)).predict(grid) for column in values.T
    ]
    predicted = np.stack(columns, axis=1)
    width = np.ptp(predicted, axis=0)
    gap = (predicted.max(axis=0) - predicted) / np.where(width > 0.0, width, 1.0)
    loss = (preference / preference.sum() * gap).max(axis=1) + RHO * gap.sum(axis=1)
    best: FloatArray = grid[int(loss.round(12).argmin())]
    return best
