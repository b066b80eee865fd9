"""DARE: drop random elements of the task vectors and rescale the rest; add them, or vote.

Masks are counter-based, keyed by (seed, expert's digest, tensor name, element): the same for
every candidate of a search, independent of the order of the experts, and nested in the density.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from torch import Tensor

from evomerge.core.genes import Gene
from evomerge.merging.operator import Compat, OperatorDefaults, TensorInputs, merge_operator
from evomerge.merging.parameters import check_fields
from evomerge.merging.sign_consensus import (
    Divisor,
    Rescale,
    Vectors,
    Vote,
    combine,
    drop,
    rescale_kept,
)
from evomerge.merging.weights import normalized, over_base


@dataclass(frozen=True, kw_only=True)
class DropAndRescale(OperatorDefaults):
    """What both DARE methods share: their parameters, and dropping.

    Attributes:
        weights: (E,) one per expert.
        density: Probability with which an element is kept, 1 - p.
        lambda_: Common scale.
        compat: "paper" rescales by 1 / density and leaves norms and biases whole; "mergekit"
            matches the L1 norm and drops everywhere.
        rescale: "inverse", "l1" or "none"; "auto" takes it from `compat`.
        vectors: Whether tensors with at most one axis are exempt from dropping; "auto" takes
            it from `compat`.
        seed: Seed of the masks; a fixed seed keeps a search landscape smooth.
    """

    weights: tuple[Annotated[float, Gene(0.0, 1.0)], ...]
    density: Annotated[float, Gene(0.05, 1.0, minimum=0.0, maximum=1.0)] = 0.5
    lambda_: Annotated[float, Gene(0.3, 1.5)] = 1.0
    compat: Compat = "paper"
    rescale: Literal["auto", "inverse", "l1", "none"] = "auto"
    vectors: Vectors = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the fields."""
        check_fields(self)

    def fallback(self, shape: tuple[int, ...]) -> str | None:
        """Return how a tensor of this shape is merged instead, or None."""
        exempt = self.vectors == "exempt" or (self.vectors == "auto" and self.compat == "paper")
        return "at most one axis, task arithmetic" if exempt and len(shape) <= 1 else None

    @property
    def resolved_rescale(self) -> Rescale:
        """The rescaling with "auto" resolved."""
        if self.rescale != "auto":
            return self.rescale
        return "inverse" if self.compat == "paper" else "l1"

    def is_whole(self, tensors: TensorInputs) -> bool:
        """Return whether nothing is dropped from this tensor."""
        return self.density >= 1.0 or self.fallback(tuple(tensors.experts[0].shape)) is not None

    def dropped(self, tensors: TensorInputs) -> tuple[Tensor, ...]:
        """Return (E,) float32 task vectors after dropping and rescaling."""
        if self.is_whole(tensors):
            return tensors.deltas
        return tuple(
            rescale_kept(
                drop(delta, tensors.uniform(k, self.seed), self.density),
                delta,
                self.density,
                self.resolved_rescale,
            )
            for k, delta in enumerate(tensors.deltas)
        )


@merge_operator("dare_linear")
@dataclass(frozen=True, kw_only=True)
class DareLinear(DropAndRescale):
    """theta_0 + lambda_ * sum_k w_k d_k, d_k the dropped and rescaled task vector.

    Attributes:
        normalize: Divide the weights by their sum.

    Raises:
        ConfigError: `normalize` is on and the weights cancel.

    Source: Yu et al. 2024, arXiv:2311.03099.
    Differs from the paper: norms and biases are not dropped from (`vectors: include` does).
    Differs from mergekit: seeded masks.
    """

    normalize: bool = False

    def __post_init__(self) -> None:
        """Check the fields."""
        check_fields(self)
        self.scales()

    def scales(self) -> tuple[float, ...]:
        """Return (E,) the factor of each task vector."""
        weights = self.weights
        if self.normalize:
            weights = normalized(weights, operator="dare_linear")
        return tuple(self.lambda_ * weight for weight in weights)

    def merge(self, tensors: TensorInputs) -> Tensor:
        """Return the merged tensor."""
        scales = self.scales()
        if self.is_whole(tensors) or not any(scales):
            return tensors.weighted_sum(over_base(scales))
        return tensors.add_to_base(
            combine(self.dropped(tensors), scales, vote=None, divisor="none")
        )


@merge_operator("dare_ties")
@dataclass(frozen=True, kw_only=True)
class DareTies(DropAndRescale):
    """DARE's dropping, then TIES's vote: theta_0 + lambda_ * sum_{k in A} w_k d_k / divisor.

    Attributes:
        sign: Whether the vote is weighted; "auto" is "unweighted" for `compat: paper`,
            "weighted" for `compat: mergekit`.
        divisor: As in `ties`.

    Source: Yu et al. 2024, arXiv:2311.03099; Yadav et al. 2023, arXiv:2306.01708.
    Differs from the papers' code: no magnitude trim after dropping, and no division by default.
    Differs from mergekit: seeded masks.
    """

    sign: Literal["auto", "weighted", "unweighted"] = "auto"
    divisor: Divisor = "none"

    def fallback(self, shape: tuple[int, ...]) -> str | None:
        """Return how a tensor of this shape is merged instead, or None."""
        found = super().fallback(shape)
        return found and "at most one axis, combined without drop or vote"

    @property
    def resolved_sign(self) -> Vote:
        """The vote with "auto" resolved."""
        if self.sign != "auto":
            return self.sign
        return "unweighted" if self.compat == "paper" else "weighted"

    def merge(self, tensors: TensorInputs) -> Tensor:
        """Return the merged tensor."""
        if self.lambda_ == 0.0 or not any(self.weights):
            return tensors.weighted_sum(over_base([0.0] * len(self.weights)))
        is_exempt = self.fallback(tuple(tensors.experts[0].shape)) is not None
        if is_exempt and self.divisor == "none":
            return tensors.weighted_sum(over_base([self.lambda_ * w for w in self.weights]))
        if self.is_whole(tensors) and len(self.weights) == 1 and self.divisor in ("none", "mean"):
            return tensors.weighted_sum(over_base([self.lambda_ * self.weights[0]]))
        merged = combine(
            self.dropped(tensors),
            self.weights,
            vote=None if is_exempt else self.resolved_sign,
            divisor=self.divisor,
        )
        return tensors.add_to_base(merged.mul_(self.lambda_))
