"""In which order examples are scored when a candidate may not be scored on all of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from evomerge.core.arrays import FloatArray, IntArray
from evomerge.core.objective import Objectives
from evomerge.seeding import generator


def mixed_order(sizes: Mapping[str, int]) -> IntArray:
    """Return (N,) positions in `Evaluation.flat_scores`, in a random order mixed by task.

    Any first part holds every task in its share of all examples, to the nearest example. One
    order for all candidates, and for all runs: any two of them are then scored on the same.

    Args:
        sizes: Task -> number of examples.
    """
    rng = generator(0, "example order")
    turns: list[FloatArray] = []
    positions: list[IntArray] = []
    start = 0
    for task in sorted(sizes):
        n = sizes[task]
        turns.append((np.arange(n) + rng.random()) / n)
        positions.append(start + rng.permutation(n))
        start += n
    order: IntArray = np.concatenate(positions)[np.argsort(np.concatenate(turns), kind="stable")]
    return order


def example_weights(
    sizes: Mapping[str, int], objectives: Objectives, mixture: FloatArray
) -> FloatArray:
    """Return (N,) weights by which a mean over all examples is the mean of the objectives.

    Args:
        sizes: Task -> number of examples, all tasks.
        objectives: The M objectives.
        mixture: (M,) weight of each, sum 1.
    """
    n_examples = sum(sizes.values())
    share = dict.fromkeys(sizes, 0.0)
    for weight, item in zip(mixture, objectives.items, strict=True):
        for task, own in item.weights.items():
            share[task] += float(weight) * own / sum(item.weights.values())
    return np.concatenate(
        [np.full(sizes[task], share[task] * n_examples / sizes[task]) for task in sorted(sizes)]
    )
