"""Reference directions: points spread evenly over the simplex of M weights that sum to 1."""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np

from evomerge.core.arrays import FloatArray


def das_dennis(n_objectives: int, divisions: int) -> FloatArray:
    """Return (n, M) all weights that are multiples of 1 / `divisions` and sum to 1.

    n = C(M + p - 1, p) with p divisions; rows rise lexicographically. No division: the centre.

    Raises:
        ValueError: `n_objectives` < 1 or `divisions` < 0.

    Source: Das & Dennis 1998, SIAM J. Optim. 8(3), normal-boundary intersection.
    """
    if n_objectives < 1 or divisions < 0:
        raise ValueError(f"no directions of {n_objectives} objectives, {divisions} divisions")
    if divisions == 0:
        return np.full((1, n_objectives), 1.0 / n_objectives)
    slots = divisions + n_objectives - 1
    # Stars and bars: the gaps between M - 1 bars among the slots are the M counts.
    chosen = list(combinations(range(slots), n_objectives - 1))
    bars = np.array(chosen, dtype=np.float64).reshape(len(chosen), n_objectives - 1)
    edges = np.pad(bars, ((0, 0), (1, 1)), constant_values=((0, 0), (-1, slots)))
    directions: FloatArray = (np.diff(edges, axis=1) - 1.0) / divisions
    return directions


def spread_directions(n_objectives: int, at_most: int) -> FloatArray:
    """Return as many even (n, M) directions as fit into `at_most`, no fewer than M.

    One layer; with fewer divisions than objectives it would lie on the simplex's border alone,
    so that a second layer, halfway to the centre, is added where it fits.

    Raises:
        ValueError: `n_objectives` < 1.

    Source: Deb & Jain 2014 (NSGA-III), IEEE TEVC 18(4), section V (layers for many objectives).
    """
    if n_objectives == 1:
        return das_dennis(1, 1)
    divisions = _most_divisions(n_objectives, at_most)
    outer = das_dennis(n_objectives, divisions)
    if divisions >= n_objectives:
        return outer
    inner = das_dennis(n_objectives, _most_divisions(n_objectives, at_most - len(outer), least=0))
    if len(outer) + len(inner) > at_most:
        return outer
    return np.concatenate([outer, 0.5 * inner + 0.5 / n_objectives])


def _most_divisions(n_objectives: int, at_most: int, least: int = 1) -> int:
    divisions = least
    while comb(n_objectives + divisions, divisions + 1) <= at_most:
        divisions += 1
    return divisions
