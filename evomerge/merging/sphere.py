"""Angles and spherical weights from Gram matrices.

Vectors are given by coordinates over a Gram matrix's basis. Shape letter: K basis vectors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from evomerge.core.arrays import FloatArray
from evomerge.core.linear_span import slerp_weights
from evomerge.errors import ConfigError
from evomerge.merging.operator import TensorInputs

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
