"""WUDI: the merge that interferes least with every expert's own inputs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from evomerge.core.arrays import FloatArray
from evomerge.merging.parameters import check_fields
from evomerge.merging.transform import (
    DeltaInputs,
    Outputs,
    TransformDefaults,
    delta_transform,
    mean_parts,
)
from evomerge.merging.transforms.interference import Interference, gradient_flow
from evomerge.merging.transforms.ranges import check_range


@delta_transform("wudi")
@dataclass(frozen=True, kw_only=True)
class Wudi(TransformDefaults):
    """tau that minimises sum_i |(tau - delta_i) delta_i^T|^2 / |delta_i|^2, one part per expert.

    The rows of a task vector span the inputs its expert was trained on, so this is RegMean
    without data: G_i = delta_i^T delta_i / |delta_i|^2 stands for the inputs' Gram matrix. Parts
    are delta_i G_i (sum_j G_j)^+, filtered as in `gradient_flow`. One expert comes back unchanged.

    Attributes:
        time: How long the flow runs: small stays near the start, infinity is the exact minimiser.
            The authors found a stopped flow better than the minimiser.
        start: Where the flow starts: the sum or the mean of the task vectors, or "zero".

    Source: Cheng et al. 2025 (WUDI-Merging, arXiv:2503.08099); filter and its default from the
    authors' later closed form (`iwudi` in WalkerWorldPeace/MLLMerging).
    Differs from the paper: gradient flow in closed form instead of 300 Adam steps with a fixed
    rate of 1e-5 (which depends on the scale of the weights); float64; directions below float32
    rounding keep the start instead of being divided by 1e-8.
    """

    outputs: ClassVar[Outputs] = "experts"

    time: float = 300.0
    start: Literal["sum", "mean", "zero"] = "sum"

    def __post_init__(self) -> None:
        """Check the fields."""
        check_fields(self)
        check_range(self, "time", 0.0, math.inf, open_low=True)

    def transform(self, tensors: DeltaInputs, survey: FloatArray | None) -> tuple[Tensor, ...]:
        """Return (E,) parts, the shape of the base; see `DeltaTransform`."""
        del survey
        if self.fallback(tensors.name, tensors.shape) is not None:
            return mean_parts(tensors.deltas, self.outputs)
        deltas = [delta.flatten(1).to(torch.float64) for delta in tensors.deltas]
        share = {"sum": 1.0, "mean": 1.0 / len(deltas), "zero": 0.0}[self.start]
        experts = [
            Interference(share * delta, delta, delta, float(delta.norm())) for delta in deltas
        ]
        parts = gradient_flow(experts, self.time)
        return tuple(part.view(tensors.shape) for part in parts)
