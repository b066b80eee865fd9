"""Angles and spherical weights from Gram matrices.

Vectors are given by coordinates over a Gram matrix's basis. Shape letter: K basis vectors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from evomerge.core.arrays import FloatArray
from evomerge.core.linear_span import slerp_weights
from evomerge.errors import ConfigError
from evomerge.merging.operator import TensorInputs
from evomerge.merging.passes import add_in_passes
from evomerge.merging.weights import over_base

# mergekit's constants: vectors shorter than this are not normalised; cosines above the
# threshold are interpolated linearly.
_MERGEKIT_SHORTEST = 1e-8
_MERGEKIT_DOT_THRESHOLD = 0.9995
# A short task vector beside a long one gets a large factor; raw tensors times such factors would
# cancel and leave their float32 rounding, differences do not.
_LARGE = 4.0


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
    return _angle(gram.tobytes(), tuple(x), tuple(y))


@lru_cache(maxsize=1 << 14)
def _angle(content: bytes, x: tuple[float, ...], y: tuple[float, ...]) -> float:
    """Return `angle`, which is the same for every candidate of a search."""
    gram = np.frombuffer(content).reshape(len(x), len(x))
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
    cosine = _mergekit_cosine(gram.tobytes(), tuple(x), tuple(y))
    if abs(cosine) > _MERGEKIT_DOT_THRESHOLD:
        return 1.0 - t, t
    return slerp_weights(t, math.acos(cosine))


@lru_cache(maxsize=1 << 14)
def _mergekit_cosine(content: bytes, x: tuple[float, ...], y: tuple[float, ...]) -> float:
    """Return the cosine of two vectors, which is the same for every candidate of a search."""
    gram = np.frombuffer(content).reshape(len(x), len(x))
    lengths = [norm(gram, x), norm(gram, y)]
    lengths = [length if length > _MERGEKIT_SHORTEST else 1.0 for length in lengths]
    inner = float(np.asarray(x, dtype=np.float64) @ gram @ np.asarray(y, dtype=np.float64))
    return inner / (lengths[0] * lengths[1])


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
    return _points_gram(gram.tobytes(), len(tensors.experts), len(gram))


@lru_cache(maxsize=1 << 14)
def _points_gram(content: bytes, n_experts: int, n_sources: int) -> FloatArray:
    """Return the (E, E) Gram matrix of the experts, the same for every candidate of a search."""
    # theta_k = s_0 + (s_k - s_0); without a base s_0 is the first expert itself.
    rows = np.eye(n_experts, n_sources, k=n_sources - n_experts)
    rows[:, 0] = 1.0
    points: FloatArray = rows @ np.frombuffer(content).reshape(n_sources, n_sources) @ rows.T
    points.flags.writeable = False
    return points


def sum_of_points(tensors: TensorInputs, weights: Sequence[float], *, is_delta: bool) -> Tensor:
    """Return sum_k weights[k] * point_k, rounded once to the output dtype.

    Args:
        tensors: The sources.
        weights: (E,) one per expert.
        is_delta: Points are task vectors, added to the base, instead of the experts' tensors.
    """
    if not is_delta:
        n_others = len(tensors.sources) - len(weights)
        return tensors.weighted_sum((*(0.0 for _ in range(n_others)), *weights))
    if math.fsum(map(abs, weights)) <= _LARGE:
        return tensors.weighted_sum(over_base(weights))

    def change(_at: slice, deltas: list[Tensor]) -> Tensor:
        total = torch.zeros_like(deltas[0])
        for weight, delta in zip(weights, deltas, strict=True):
            total.add_(delta, alpha=weight)
        return total

    return add_in_passes(tensors, change)
