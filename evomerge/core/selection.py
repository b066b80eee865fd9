"""Who stays and who breeds: picking several of a population, each at most once.

Shape letter: P members. Fitness is higher-is-better, finite, of any sign.
"""

from __future__ import annotations

import numpy as np

from evomerge.core.arrays import FloatArray
from evomerge.core.niching import roulette


def spin(fitness: FloatArray, n: int, rng: np.random.Generator) -> list[int]:
    """Return n different indices, each drawn in proportion to (P,) fitness among those left.

    Negative fitness is shifted so that the worst gets 0. Where all that are left have 0, the draw
    is uniform among them.

    Raises:
        ValueError: n is larger than P.
    """
    _check(fitness, n)
    shares = fitness - min(float(fitness.min(initial=0.0)), 0.0)
    left = np.arange(len(fitness))
    picked: list[int] = []
    for _ in range(n):
        at = roulette(shares[left], rng)
        picked.append(int(left[at]))
        left = np.delete(left, at)
    return picked


def tournament(fitness: FloatArray, n: int, size: int, rng: np.random.Generator) -> list[int]:
    """Return n different indices: each time the fittest of `size` drawn from those left.

    Of equally fit contestants the lowest index wins. Fewer contestants where fewer are left.

    Raises:
        ValueError: n is larger than P.
    """
    _check(fitness, n)
    left = list(range(len(fitness)))
    picked: list[int] = []
    for _ in range(n):
        drawn = rng.choice(len(left), size=min(size, len(left)), replace=False)
        contestants = sorted(left[int(i)] for i in drawn)
        winner = max(contestants, key=lambda index: float(fitness[index]))
        left.remove(winner)
        picked.append(winner)
    return picked


def elites(fitness: FloatArray, n: int) -> list[int]:
    """Return the indices of the n fittest, best first; of equals the lowest index first."""
    return [int(index) for index in np.argsort(-fitness, kind="stable")[:n]]


def _check(fitness: FloatArray, n: int) -> None:
    if n > len(fitness):
        raise ValueError(f"cannot pick {n} different members of {len(fitness)}")
