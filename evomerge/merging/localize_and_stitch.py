"""Localize-and-Stitch without data: keep each expert's largest changes, average where they meet."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar, Literal

from torch import Tensor

from evomerge.core.genes import Gene
from evomerge.merging.exempt import Vectors, exempt_kind
from evomerge.merging.kept import Keep, merge_kept
from evomerge.merging.operator import OperatorDefaults, TensorInputs, merge_operator
from evomerge.merging.parameters import check_fields
from evomerge.merging.weights import over_base


@merge_operator("localize_and_stitch")
@dataclass(frozen=True, kw_only=True)
class LocalizeAndStitch(OperatorDefaults):
    """theta_0 + lambda_ * sum_k w_k m_k d_k / sum_k m_k, m_k 1 on the largest `density` of |d_k|.

    TIES without its vote: regions that one expert changed are stitched in whole, and where
    regions overlap the experts are averaged, whatever their signs.

    Attributes:
        weights: (E,) one per expert; all 1 in the paper.
        density: Fraction of elements kept, at least one.
        lambda_: Common scale.
        threshold: Whether the density counts over the whole model ("global") or in each tensor.
        vectors: "exempt" ("auto" is the same) averages tensors with at most one axis, and
            routers, untrimmed.

    Source: He et al. 2024, arXiv:2408.13656 (its dataless variant).
    Differs from the paper: norms, biases and routers are exempt; kept elements that are zero do
    not count in the average. Elements that tie with the threshold are all kept.
    """

    needs_thresholds: ClassVar[bool] = True

    weights: tuple[Annotated[float, Gene(0.0, 1.0)], ...]
    density: Annotated[float, Gene(0.01, 0.3, minimum=0.0, maximum=1.0)] = 0.1
    lambda_: Annotated[float, Gene(0.3, 2.0)] = 1.0
    threshold: Literal["global", "tensor"] = "global"
    vectors: Vectors = "auto"

    def __post_init__(self) -> None:
        """Check the fields."""
        check_fields(self)

    def fallback(self, name: str, shape: tuple[int, ...]) -> str | None:
        """Return how such a tensor is merged instead, or None."""
        kind = exempt_kind(name, shape, self.vectors, "paper")
        return kind and f"{kind}, averaged untrimmed"

    def merge(self, tensors: TensorInputs) -> Tensor:
        """Return the merged tensor."""
        n_experts = len(self.weights)
        if self.lambda_ == 0.0 or not any(self.weights):
            return tensors.weighted_sum(over_base([0.0] * n_experts))
        exempt = self.fallback(tensors.name, tuple(tensors.experts[0].shape)) is not None
        if exempt or (n_experts == 1 and self.density >= 1.0):
            scales = [self.lambda_ * weight / n_experts for weight in self.weights]
            return tensors.weighted_sum(over_base(scales))
        keeps = [Keep()] * n_experts
        if self.density < 1.0:
            find = partial(tensors.threshold, density=self.density, scope=self.threshold)
            keeps = [Keep(low=find(expert)) for expert in range(n_experts)]
        return merge_kept(
            tensors, keeps, self.weights, vote="touched", divisor="mean", scale=self.lambda_
        )
