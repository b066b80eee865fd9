"""Anchors: the few examples that stand for all of a data set, and what is guessed from them.

Tasks are told apart throughout: each gets anchors in its share of all examples (at least one), and
weights that sum to 1 within it.

Shapes: N examples of all tasks in the order of `Evaluation.flat_scores`, n anchors, P models that
are fully scored.

Source: algorithms.md §6: MERGE3 (random), tinyBenchmarks (clusters), Evo-L2S (entropy).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from evomerge.core.arrays import FloatArray, IntArray

_LLOYD_ROUNDS = 50
_SMALLEST_ENTROPY = 0.05  # in nats: examples on which all models agree are drawn too


@dataclass(frozen=True, eq=False)
class Anchors:
    """Some of the examples.

    Attributes:
        positions: (n,) in `Evaluation.flat_scores`, rising.
        weights: (n,) of their scores in the mean of their task.
    """

    positions: IntArray
    weights: FloatArray


def random_anchors(sizes: Mapping[str, int], n: int, rng: np.random.Generator) -> Anchors:
    """Return n examples that are drawn at random, equally weighted in each task."""
    picked = [rng.permutation(own)[:count] for own, count in _tasks(sizes, n)]
    return _sorted(picked, [np.full(len(own), 1.0 / len(own)) for own in picked])


def clustered_anchors(
    features: FloatArray, sizes: Mapping[str, int], n: int, rng: np.random.Generator
) -> Anchors:
    """Return the examples nearest to the centres of n clusters, weighted by the clusters' shares.

    k-means in each task. Where fewer than n examples differ, larger clusters have several anchors
    that share its weight.

    Args:
        features: (N, F) by which examples are alike: the scores of P models, or item parameters.
        sizes: Task -> number of examples.
        n: How many anchors.
        rng: For the seeding, and among examples that are equally near.
    """
    positions, weights = [], []
    for own, count in _tasks(sizes, n):
        mixed = rng.permutation(own)  # ties go to any of the equals, not to the first ones
        distance, cluster = _clusters(features[mixed], count, rng)
        members = np.bincount(cluster)
        anchors = _shares(members, count)
        for index in np.flatnonzero(members):
            inside = np.flatnonzero(cluster == index)
            nearest = inside[np.argsort(distance[inside], kind="stable")][: anchors[index]]
            positions.append(mixed[nearest])
            weight = members[index] / (len(own) * len(nearest))
            weights.append(np.full(len(nearest), weight))
    return _sorted(positions, weights)


def entropy_anchors(
    scores: FloatArray, sizes: Mapping[str, int], n: int, rng: np.random.Generator
) -> Anchors:
    """Return examples drawn the more often the less the models agree on them.

    The chance to be drawn is proportional to the entropy of an example's mean score, with a floor;
    weights undo that (one over the chance), so that the weighted mean is not biased towards hard
    examples.

    Args:
        scores: (P, N) in [0, 1].
        sizes: Task -> number of examples.
        n: How many anchors.
        rng: Draws them.
    """
    mean = np.clip(scores.mean(axis=0), 1e-12, 1.0 - 1e-12)
    entropy = -(mean * np.log(mean) + (1.0 - mean) * np.log1p(-mean))
    worth = np.maximum(entropy, _SMALLEST_ENTROPY)
    positions, weights = [], []
    for own, count in _tasks(sizes, n):
        mixed = rng.permutation(own)
        chance = _chances(worth[mixed], count)
        steps = np.floor(np.cumsum(chance) + rng.random() + 1e-9)  # rises by 1 at each one drawn
        drawn = np.flatnonzero(np.diff(steps, prepend=0.0) > 0.0)[:count]
        positions.append(mixed[drawn])
        weight = 1.0 / chance[drawn]
        weights.append(weight / weight.sum())
    return _sorted(positions, weights)


def estimated_scores(
    anchors: Anchors,
    row: FloatArray,
    guesses: FloatArray,
    sizes: Mapping[str, int],
    direct: float,
) -> FloatArray:
    """Return (N,) scores with what those that are missing may be.

    The mean of a task is estimated as `direct` times the weighted mean W of its anchors' scores,
    plus 1 - direct times n/N W + (1 - n/N) times the mean guess: 0 is MP-IRT where guesses are
    those of an item response model, 0.5 GMP-IRT, 1 the anchors alone. The guesses are then moved
    towards 0 or 1 until the mean of all scores is that.

    Args:
        anchors: All of them are scored.
        row: (N,) in [0, 1], NaN where not scored.
        guesses: (N,) in [0, 1].
        sizes: Task -> number of examples.
        direct: In [0, 1].
    """
    weighted = np.zeros(len(row))
    weighted[anchors.positions] = anchors.weights * row[anchors.positions]
    known = ~np.isnan(row)
    result = np.where(known, row, guesses)
    for own in _slices(sizes):
        missing = own[~known[own]]
        if not len(missing):
            continue
        seen = 1.0 - len(missing) / len(own)
        by_anchors, guess = float(weighted[own].sum()), float(guesses[missing].mean())
        by_model = seen * by_anchors + (1.0 - seen) * guess
        mean = direct * by_anchors + (1.0 - direct) * by_model
        of_missing = (mean * len(own) - float(row[own[known[own]]].sum())) / len(missing)
        result[missing] = moved_to(guesses[missing], float(np.clip(of_missing, 0.0, 1.0)))
    return result


def moved_to(scores: FloatArray, mean: float) -> FloatArray:
    """Return scores in [0, 1] with a given mean: all moved towards 0, or all towards 1."""
    now = float(scores.mean())
    if mean <= now:
        return scores * (mean / now if now > 0.0 else 1.0)
    result: FloatArray = 1.0 - (1.0 - scores) * ((1.0 - mean) / (1.0 - now))
    return result


def _slices(sizes: Mapping[str, int]) -> Iterator[IntArray]:
    """Yield the positions of each task."""
    start = 0
    for task in sorted(sizes):
        yield np.arange(start, start + sizes[task])
        start += sizes[task]


def _tasks(sizes: Mapping[str, int], n: int) -> Iterator[tuple[IntArray, int]]:
    """Yield the positions of each task and how many anchors it gets."""
    counts = _shares(np.array([sizes[task] for task in sorted(sizes)]), n)
    yield from zip(_slices(sizes), counts.tolist(), strict=True)


def _shares(sizes: IntArray, n: int) -> IntArray:
    """Split n by sizes: at least 1 and at most all of each that is not empty, largest rest first.

    The sum is n wherever these limits allow it.
    """
    found: IntArray = np.minimum(sizes, np.maximum(1, sizes * n // sizes.sum()))
    wanted = sizes * (n / sizes.sum())
    for _ in range(max(0, min(n, int(sizes.sum())) - int(found.sum()))):
        found[np.where(found < sizes, wanted - found, -np.inf).argmax()] += 1
    while found.sum() > n and found.max() > 1:
        found[np.where(found > 1, found - wanted, -np.inf).argmax()] -= 1
    return found


def _sorted(positions: list[IntArray], weights: list[FloatArray]) -> Anchors:
    joined = np.concatenate(positions)
    order = np.argsort(joined)
    return Anchors(joined[order], np.concatenate(weights)[order])


def _clusters(points: FloatArray, n: int, rng: np.random.Generator) -> tuple[FloatArray, IntArray]:
    """Return (N,) squared distances to the nearest centre and its index, by k-means++ and Lloyd."""
    centres = points[rng.integers(len(points))][None]
    distance = ((points - centres[0]) ** 2).sum(axis=1)
    while len(centres) < n and distance.sum() > 1e-12:
        chosen = points[rng.choice(len(points), p=distance / distance.sum())]
        centres = np.vstack([centres, chosen])
        distance = np.minimum(distance, ((points - chosen) ** 2).sum(axis=1))
    cluster = np.full(len(points), -1)
    for _ in range(_LLOYD_ROUNDS):
        squares = (centres**2).sum(axis=1) - 2.0 * points @ centres.T
        before, cluster = cluster, squares.argmin(axis=1)
        if (cluster == before).all():
            break
        members = np.bincount(cluster, minlength=len(centres))
        sums = np.zeros_like(centres)
        np.add.at(sums, cluster, points)
        filled = members > 0
        centres[filled] = sums[filled] / members[filled, None]
    return ((points - centres[cluster]) ** 2).sum(axis=1), cluster


def _chances(worth: FloatArray, n: int) -> FloatArray:
    """Return (N,) chances to be drawn, proportional to worth, at most 1, with sum n."""
    chance: FloatArray = np.minimum(1.0, n * worth / worth.sum())
    while n - chance.sum() > 1e-9:
        free = chance < 1.0
        rest = n - np.count_nonzero(~free)
        chance[free] = np.minimum(1.0, rest * worth[free] / worth[free].sum())
    return chance
