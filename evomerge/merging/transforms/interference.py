"""Least interference between task vectors, solved through one symmetric eigenproblem.

WUDI and OptMerge both look for the task vector tau that minimises

    sum_i |(tau - target_i) subspace_i^T|^2 / |delta_i|^2,

a convex quadratic in the rows of tau with curvature C = sum_i G_i, where
G_i = subspace_i^T subspace_i / |delta_i|^2. Gradient flow from a start, stopped at time t, is the
minimiser filtered by 1 - exp(-t C); at t = infinity it is the minimiser itself.

Shapes: E experts, matrices (m, n), outputs first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.merging.transforms.spectral import RANK_TOLERANCE


@dataclass(frozen=True, eq=False)
class Interference:
    """What one expert adds to the quadratic; (m, n) float64 each.

    Attributes:
        start: Its share of the point the flow starts from.
        target: What tau should do on the expert's inputs.
        subspace: Rows that span the expert's inputs.
        norm: Length of its task vector; 0 leaves the expert out of the quadratic.
    """

    start: Tensor
    target: Tensor
    subspace: Tensor
    norm: float


def gradient_flow(experts: Sequence[Interference], time: float) -> tuple[Tensor, ...]:
    """Return (E,) float32 (m, n) parts whose sum is the flow from the summed starts after `time`.

    Part i is start_i (I - V f V^T) + target_i G_i V (f / L) V^T with C = V L V^T and
    f = 1 - exp(-L t). Directions that no expert uses keep the start.

    Args:
        experts: (E,) terms of the quadratic.
        time: Above 0; infinity gives the minimiser nearest to the start. C has trace at most E,
            so times compare across tensors and models.

    Source: exponential filter of the authors' later closed forms (WalkerWorldPeace/MLLMerging).
    """
    spans = [
        expert.subspace / expert.norm if expert.norm > 0.0 else torch.zeros_like(expert.subspace)
        for expert in experts
    ]
    values, vectors = torch.linalg.eigh(torch.stack([span.T @ span for span in spans]).sum(0))
    fraction, inverse = _filter(values, time)
    parts = []
    for expert, span in zip(experts, spans, strict=True):
        pulled = torch.linalg.multi_dot([expert.target, span.T, span, vectors]) * inverse
        pulled -= (expert.start @ vectors) * fraction
        parts.append((expert.start + pulled @ vectors.T).to(torch.float32))
    return tuple(parts)


def _filter(values: Tensor, time: float) -> tuple[Tensor, Tensor]:
    """Return f and f / L for eigenvalues L, both 0 where L is rounding of the float32 inputs."""
    # Eigenvalues are squared singular values.
    is_used = values > max(float(values.max()), 0.0) * RANK_TOLERANCE**2
    safe = torch.where(is_used, values, 1.0)
    fraction = torch.ones_like(safe) if math.isinf(time) else -torch.expm1(-safe * time)
    zero = torch.zeros_like(safe)
    return torch.where(is_used, fraction, zero), torch.where(is_used, fraction / safe, zero)
