"""Item response theory: how likely a model of some ability solves an example.

The multi-dimensional two-parameter model: model p solves item i with probability
sigmoid(slopes_i . ability_p - offsets_i). Scores may be anything in [0, 1]: the Bernoulli
likelihood is used for fractions too. Everything is fitted with Gaussian priors, so that items which
all models solve, or none, and models that solve everything shown, have finite estimates.

Shapes: P models, N items, n of them seen, d dimensions, K models that a merge is made of.

Source: algorithms.md §6 (MERGE3, arXiv 2502.10436; tinyBenchmarks, arXiv 2402.14992).
Differs from both: abilities and items have priors, the mixture is bounded and drawn towards equal
parts, and item parameters are fitted on the scores at hand when nobody brings any.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evomerge.core.arrays import BoolArray, FloatArray, IntArray

SLOPE_SD, OFFSET_SD, ABILITY_SD = 1.0, 2.0, 1.0  # of the priors, around 0
MIXTURE_SD = 0.5  # of the prior of a mixture's coefficients, around 1 / K
MIXTURE_BOUNDS = (-1.0, 2.0)
_STEPS, _HALVINGS = 30, 20
_TOLERANCE = 1e-6  # largest move of a coefficient at which a regression has arrived
_ROUNDS = 30  # of items, then abilities
_STEPS_OF_ROUND = 2  # the other half moves too: more would be for nothing
_ROUND_TOLERANCE = 0.01  # largest move of an ability, of which the prior's deviation is 1


@dataclass(frozen=True, eq=False)
class Items:
    """The parameters of N items.

    Attributes:
        slopes: (N, d) how much each ability helps.
        offsets: (N,) difficulty.
    """

    slopes: FloatArray
    offsets: FloatArray

    def probabilities(self, abilities: FloatArray) -> FloatArray:
        """Return (P, N) the chance of each of (P, d) models on each item."""
        return _sigmoid(abilities @ self.slopes.T - self.offsets)

    def at(self, positions: IntArray) -> Items:
        """Return the items at (n,) positions."""
        return Items(self.slopes[positions], self.offsets[positions])


def fit_abilities(items: Items, scores: FloatArray) -> FloatArray:
    """Return (P, d) the most likely abilities of models.

    Args:
        items: What was scored.
        scores: (P, N) in [0, 1].
    """
    return _better_abilities(items, scores, np.zeros((len(scores), items.slopes.shape[1])), _STEPS)


def fit_mixture(items: Items, parents: FloatArray, scores: FloatArray) -> FloatArray:
    """Return (K,) coefficients whose mixture of the parents' abilities explains some scores best.

    Each lies in [-1, 2] and is drawn towards 1 / K: with no scores, or parents that do not differ,
    it is that.

    Args:
        items: The n items that were scored.
        parents: (K, d) abilities of the parents.
        scores: (n,) in [0, 1].
    """
    k = len(parents)
    equal, precision = np.full(k, 1.0 / k), np.full(k, MIXTURE_SD**-2)
    design: FloatArray = items.slopes @ parents.T
    found: FloatArray = _regress(
        design, -items.offsets, scores[None], equal[None], equal, precision, MIXTURE_BOUNDS
    )[0]
    return found


def fit_items(scores: FloatArray, dimensions: int) -> tuple[Items, FloatArray]:
    """Return items and the (P, d) abilities of the models that were scored on them.

    Alternates between the two, each the most likely given the other, from abilities that are the
    leading left singular vectors of the scores without their item means. At most P - 1 dimensions
    are used.

    Args:
        scores: (P, N) in [0, 1]; at least two models.
        dimensions: d.

    Raises:
        ValueError: There are fewer than two models, or fewer than one dimension.
    """
    if len(scores) < 2 or dimensions < 1:
        raise ValueError(
            f"items need two models and a dimension, not {len(scores)} and {dimensions}"
        )
    d = min(dimensions, len(scores) - 1)
    left = np.linalg.svd(scores - scores.mean(axis=0), full_matrices=False)[0][:, :d]
    biggest = np.take_along_axis(left, np.abs(left).argmax(axis=0)[None], axis=0)
    abilities = left * np.where(biggest < 0.0, -1.0, 1.0) * np.sqrt(len(scores))
    precision = np.append(np.full(d, SLOPE_SD**-2), OFFSET_SD**-2)
    found = np.zeros((scores.shape[1], d + 1))
    items = Items(found[:, :d], found[:, d])
    for _ in range(_ROUNDS):
        design = np.column_stack([abilities, np.full(len(scores), -1.0)])
        found = _regress(
            design,
            np.zeros(len(scores)),
            scores.T,
            found,
            np.zeros(d + 1),
            precision,
            n_steps=_STEPS_OF_ROUND,
        )
        items = Items(found[:, :d], found[:, d])
        before = abilities
        abilities = _better_abilities(items, scores, before, _STEPS_OF_ROUND)
        if np.abs(abilities - before).max() < _ROUND_TOLERANCE:
            break
    return items, abilities


def _better_abilities(
    items: Items, scores: FloatArray, start: FloatArray, n_steps: int
) -> FloatArray:
    """Return (P, d) abilities more likely than those to start from."""
    d = items.slopes.shape[1]
    precision = np.full(d, ABILITY_SD**-2)
    return _regress(
        items.slopes, -items.offsets, scores, start, np.zeros(d), precision, n_steps=n_steps
    )


def _regress(
    design: FloatArray,
    offset: FloatArray,
    scores: FloatArray,
    start: FloatArray,
    centre: FloatArray,
    precision: FloatArray,
    bounds: tuple[float, float] = (-np.inf, np.inf),
    n_steps: int = _STEPS,
) -> FloatArray:
    """Return (B, d) coefficients of B logistic regressions over one design, with Gaussian priors.

    Projected Newton steps (Bertsekas 1982), halved until the posterior rises. The problem is
    convex, so they end at its only optimum.

    Args:
        design: (n, d).
        offset: (n,) added to design @ coefficients.
        scores: (B, n) in [0, 1].
        start: (B, d) within the bounds.
        centre: (d,) means of the priors.
        precision: (d,) inverse variances of the priors.
        bounds: Of every coefficient.
        n_steps: At most so many.
    """
    low, high = bounds
    n, d = design.shape
    outer = (design[:, :, None] * design[:, None, :]).reshape(n, d * d)
    diagonal = np.eye(d, dtype=np.bool_)

    def cost(x: FloatArray) -> FloatArray:
        z = x @ design.T + offset
        prior: FloatArray = 0.5 * ((x - centre) ** 2 @ precision)
        misfit: FloatArray = (np.logaddexp(0.0, z) - scores * z).sum(axis=1)
        return misfit + prior

    x, now = start, cost(start)
    for _ in range(n_steps):
        p = _sigmoid(x @ design.T + offset)
        gradient = (p - scores) @ design + (x - centre) * precision
        curvature = ((p * (1.0 - p)) @ outer).reshape(-1, d, d) + np.diag(precision)
        held: BoolArray = ((x <= low) & (gradient > 0.0)) | ((x >= high) & (gradient < 0.0))
        curvature[(held[:, :, None] | held[:, None, :]) & ~diagonal] = 0.0
        step = np.linalg.solve(curvature, np.where(held, 0.0, gradient)[:, :, None])[:, :, 0]
        length = np.ones((len(x), 1))
        for _ in range(_HALVINGS):
            tried = np.clip(x - length * step, low, high)
            reached = cost(tried)
            worse = reached > now
            if not worse.any():
                break
            length[worse] *= 0.5
        tried[worse], reached[worse] = x[worse], now[worse]
        moved = np.abs(tried - x).max()
        x, now = tried, reached
        if moved < _TOLERANCE:
            break
    return x


def _sigmoid(z: FloatArray) -> FloatArray:
    result: FloatArray = 0.5 * (1.0 + np.tanh(0.5 * z))
    return result
