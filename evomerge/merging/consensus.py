"""Consensus merging: keep what at least `agreement` experts claim, by their TALL masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from evomerge.core.genes import Gene
from evomerge.errors import ConfigError
from evomerge.merging.exempt import Vectors, exempt_kind
from evomerge.merging.operator import OperatorDefaults, TensorInputs, merge_operator
from evomerge.merging.parameters import check_fields
from evomerge.merging.passes import add_in_passes
from evomerge.merging.weights import over_base


def n_claims(deltas: Tensor, threshold: float) -> Tensor:
    """Return by how many TALL masks each element is claimed: |d_k| >= threshold |sum_j d_j - d_k|.

    Args:
        deltas: (E, n) float32.
        threshold: lambda_t of the paper.

    Returns:
        (n,) int64. An element that no expert changed is claimed by all.
    """
    # float64: a float32 sum would depend on the order of the experts.
    double = deltas.double()
    total = double.sum(0)
    return (double.abs() >= threshold * (total - double).abs()).sum(0)


@merge_operator("consensus")
@dataclass(frozen=True, kw_only=True)
class Consensus(OperatorDefaults):
    """theta_0 + lambda_ * sum_k w_k d_k where sum_k m_k >= `agreement`, theta_0 elsewhere.

    m_k = [|d_k| >= mask_threshold |sum_j d_j - d_k|] is expert k's TALL mask: where its own
    change is not drowned by the others'. Elements that no or one mask holds are left out.

    Attributes:
        weights: (E,) one per expert; all 1 in the paper. They do not change the masks.
        mask_threshold: lambda_t of the paper: small values make masks large.
        lambda_: Common scale.
        agreement: Masks that must hold an element, k of the paper; the number of experts when
            there are fewer.
        vectors: "exempt" ("auto" is the same) adds tensors with at most one axis, and routers,
            unmasked.

    Raises:
        ConfigError: `agreement` is negative.

    Source: Wang et al. 2024, arXiv:2405.07813.
    Differs from the paper: one `mask_threshold` for all experts; norms, biases and
    routers are exempt.
    """

    weights: tuple[Annotated[float, Gene(0.0, 1.0)], ...]
    mask_threshold: Annotated[float, Gene(0.2, 0.6, minimum=0.0)] = 0.4
    lambda_: Annotated[float, Gene(0.3, 1.5)] = 1.0
    agreement: int = 2
    vectors: Vectors = "auto"

    def __post_init__(self) -> None:
        """Check the fields."""
        check_fields(self)
        if self.agreement < 0:
            raise ConfigError(f"agreement is {self.agreement}, must be at least 0")

    def fallback(self, name: str, shape: tuple[int, ...]) -> str | None:
        """Return how such a tensor is merged instead, or None."""
        kind = exempt_kind(name, shape, self.vectors, "paper")
        return kind and f"{kind}, task arithmetic"

    def merge(self, tensors: TensorInputs) -> Tensor:
        """Return the merged tensor."""
        scales = [self.lambda_ * weight for weight in self.weights]
        exempt = self.fallback(tensors.name, tuple(tensors.experts[0].shape)) is not None
        # A lone expert claims everything.
        if exempt or len(scales) == 1 or self.agreement == 0 or not any(scales):
            return tensors.weighted_sum(over_base(scales))
        return add_in_passes(tensors, lambda _, deltas: self._agreed(torch.stack(deltas), scales))

    def _agreed(self, deltas: Tensor, scales: Sequence[float]) -> Tensor:
        total = torch.zeros(deltas.shape[1], dtype=torch.float32, device=deltas.device)
        for delta, scale in zip(deltas, scales, strict=True):
            total.add_(delta, alpha=scale)
        return total * (n_claims(deltas, self.mask_threshold) >= min(self.agreement, len(scales)))
