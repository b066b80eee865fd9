"""Angles and spherical weights from Gram matrices.

Vectors are given by coordinates over a Gram matrix's basis. Shape letter: K basis vectors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from evomerge.core.arrays import FloatArray
from evomerge.core.linear_span import slerp_weights
from evomerge.errors import ConfigError
from evomerge.merging.operator import TensorInputs
from evomerge.merging.weights import over_base

# mergekit's constants: vectors shorter than this are not normalised; cosines above the
# threshold are interpolated linearly.
_MERGEKIT_SHORTEST = 1e-8
_MERGEKIT_DOT_THRESHOLD = 0.9995


def required_gram(tensors: TensorInputs) -> FloatArray:
    """Return the tensor's (K, K) Gram matrix, which the caller asked for with `needs_gram`.

    Raises:
        ConfigError: The merge was prepared without it.
    """
    if tensors.gram is None:
        raise ConfigError(f"{tensors.name}: this merge was prepared without Gram matrices")
    return tensors.gram


def norm(gram: FloatArray, x: Sequence[float]) -> float:
    """Return the length of a vector with (K,) coordinates `x`."""
    coordinates = np.asarray(x, dtype=np.float64)
    return math.sqrt(max(float(coordinates @ gram @ coordinates), 0.0))


def angle(gram: FloatArray, x: Sequence[float], y: Sequence[float]) -> float:
    """Return the angle between two vectors in radians, in [0, pi]; 0 when one is zero.

    Computed from the difference of the unit vectors: fine-tunes of one base have cosines above
    0.999, where arccos loses half the digits.
    """
    length_x, length_y = norm(gram, x), norm(gram, y)
    if length_x == 0.0 or length_y == 0.0:
        return 0.0
    unit_x = np.asarray(x, dtype=np.float64) / length_x
    unit_y = np.asarray(y, dtype=np.float64) / length_y
    return 2.0 * math.asin(min(norm(gram, list(unit_x - unit_y)) / 2.0, 1.0))


def mergekit_slerp_weights(
    t: float, gram: FloatArray, x: Sequence[float], y: Sequence[float]
) -> tuple[float, float]:
    """Return (u, v) as mergekit 0.1.5's slerp uses them: plain lerp when |cos| > 0.9995."""
    lengths = [norm(gram, x), norm(gram, y)]
    lengths = [length if length > _MERGEKIT_SHORTEST else 1.0 for length in lengths]
    inner = float(np.asarray(x, dtype=np.float64) @ gram @ np.asarray(y, dtype=np.float64))
    cosine = inner / (lengths[0] * lengths[1])
    if abs(cosine) > _MERGEKIT_DOT_THRESHOLD:
        return 1.0 - t, t
    return slerp_weights(t, math.acos(cosine))


Space = Literal["auto", "raw", "delta"]


def is_delta_space(tensors: TensorInputs, space: Space, *, operator: str) -> bool:
    """Return whether a method combines task vectors; "auto" means so when there is a base.

    Raises:
        ConfigError: Task vectors are asked for without a base.
    """
    if space == "delta" and tensors.base is None:
        raise ConfigError(f"{operator}: `space: delta` needs a base")
    return tensors.base is not None and space != "raw"


def points_gram(tensors: TensorInputs, *, is_delta: bool) -> FloatArray:
    """Return the (E, E) Gram matrix of the experts' tensors, or of their task vectors."""
    gram = required_gram(tensors)
    if is_delta:
        return gram[1:, 1:]
    n_experts, n_sources = len(tensors.experts), len(tensors.sources)
    # theta_k = s_0 + (s_k - s_0); without a base s_0 is the first expert itself.
    rows = np.eye(n_experts, n_sources, k=n_sources - n_experts)
    rows[:, 0] = 1.0
    points: FloatArray = rows @ gram @ rows.T
    return points


def over_sources(
    tensors: TensorInputs, weights: Sequence[float], *, is_delta: bool
) -> tuple[float, ...]:
    """Return (K,) coefficients over the sources of sum_k weights[k] * point_k.

    Points are the experts' tensors, or their task vectors, which are added to the base.
    """
    if is_delta:
        return over_base(weights)
    return (*(0.0 for _ in range(len(tensors.sources) - len(weights))), *weights)
