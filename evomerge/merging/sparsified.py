"""Methods that thin out every task vector on its own, then add what is left or vote on it.

DARE, DELLA and Model Breadcrumbs differ only in which elements they keep: each says so in `keep`,
and takes its `merge` from `AddSparsified` or `VoteSparsified`.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from torch import Tensor

from evomerge.core.genes import Gene
from evomerge.merging.exempt import Vectors, exempt_kind
from evomerge.merging.kept import Divisor, Keep, Vote, merge_kept
from evomerge.merging.operator import Compat, OperatorDefaults, TensorInputs
from evomerge.merging.parameters import check_fields
from evomerge.merging.sign_consensus import resolve_divisor, resolve_vote
from evomerge.merging.weights import normalized, over_base


@dataclass(frozen=True, kw_only=True)
class Sparsified(OperatorDefaults):
    """The parameters of every such method.

    Attributes:
        weights: (E,) one per expert.
        density: Fraction of elements kept.
        lambda_: Common scale.
        compat: Where the settings left at "auto" come from.
        vectors: Whether tensors with at most one axis, and routers, are exempt; "auto" exempts
            them for `compat: paper`, and includes them for `compat: mergekit`.
    """

    weights: tuple[Annotated[float, Gene(0.0, 1.0)], ...]
    density: Annotated[float, Gene(0.05, 1.0, minimum=0.0, maximum=1.0)] = 0.5
    lambda_: Annotated[float, Gene(0.3, 1.5)] = 1.0
    compat: Compat = "paper"
    vectors: Vectors = "auto"

    def __post_init__(self) -> None:
        """Check the fields."""
        check_fields(self)

    def fallback(self, name: str, shape: tuple[int, ...]) -> str | None:
        """Return how such a tensor is merged instead, or None."""
        kind = exempt_kind(name, shape, self.vectors, self.compat)
        return kind and f"{kind}, task arithmetic"

    def is_whole(self, tensors: TensorInputs) -> bool:
        """Return whether nothing is taken from this tensor."""
        shape = tuple(tensors.experts[0].shape)
        return self.density >= 1.0 or self.fallback(tensors.name, shape) is not None

    @abstractmethod
    def keep(self, tensors: TensorInputs, expert: int) -> Keep:
        """Return what stays of one task vector, and its factor."""

    def keeps(self, tensors: TensorInputs) -> list[Keep]:
        """Return (E,) what stays of the task vectors: everything where the tensor is whole."""
        n_experts = len(tensors.experts)
        if self.is_whole(tensors):
            return [Keep()] * n_experts
        return [self.keep(tensors, k) for k in range(n_experts)]


@dataclass(frozen=True, kw_only=True)
class AddSparsified(Sparsified):
    """theta_0 + lambda_ * sum_k w_k d_k, d_k the thinned task vector.

    Attributes:
        name: The method's name, for messages.
        normalize: Divide the weights by their sum.

    Raises:
        ConfigError: `normalize` is on and the weights cancel.
    """

    name: ClassVar[str]

    normalize: bool = False

    def __post_init__(self) -> None:
        """Check the fields."""
        check_fields(self)
        self.scales()

    def scales(self) -> tuple[float, ...]:
        """Return (E,) the factor of each task vector."""
        weights = self.weights
        if self.normalize:
            weights = normalized(weights, operator=self.name)
        return tuple(self.lambda_ * weight for weight in weights)

    def merge(self, tensors: TensorInputs) -> Tensor:
        """Return the merged tensor."""
        scales = self.scales()
        if self.is_whole(tensors) or not any(scales):
            return tensors.weighted_sum(over_base(scales))
        return merge_kept(tensors, self.keeps(tensors), scales, vote=None, divisor="none")


@dataclass(frozen=True, kw_only=True)
class VoteSparsified(Sparsified):
    """theta_0 + lambda_ * sum_{k in A} w_k d_k / divisor, A the experts of the elected sign.

    Attributes:
        sign: Whether the vote is weighted; "auto" is "unweighted" for `compat: paper`,
            "weighted" for `compat: mergekit`.
        divisor: As in `ties`; "auto" is "mean" for `compat: paper`,
            "signed_weights" for `compat: mergekit`.
    """

    sign: Literal["auto", "weighted", "unweighted"] = "auto"
    divisor: Literal["auto", "mean", "weights", "signed_weights", "none"] = "none"

    def fallback(self, name: str, shape: tuple[int, ...]) -> str | None:
        """Return how such a tensor is merged instead, or None."""
        kind = exempt_kind(name, shape, self.vectors, self.compat)
        return kind and f"{kind}, combined without drop or vote"

    @property
    def resolved_sign(self) -> Vote:
        """The vote with "auto" resolved."""
        return resolve_vote(self.sign, self.compat)

    @property
    def resolved_divisor(self) -> Divisor:
        """The divisor with "auto" resolved."""
        return resolve_divisor(self.divisor, self.compat)

    def merge(self, tensors: TensorInputs) -> Tensor:
        """Return the merged tensor."""
        if self.lambda_ == 0.0 or not any(self.weights):
            return tensors.weighted_sum(over_base([0.0] * len(self.weights)))
        divisor = self.resolved_divisor
        exempt = self.fallback(tensors.name, tuple(tensors.experts[0].shape)) is not None
        if exempt and divisor == "none":
            return tensors.weighted_sum(over_base([self.lambda_ * w for w in self.weights]))
        if self.is_whole(tensors) and len(self.weights) == 1 and divisor in ("none", "mean"):
            return tensors.weighted_sum(over_base([self.lambda_ * self.weights[0]]))
        return merge_kept(
            tensors,
            self.keeps(tensors),
            self.weights,
            vote=None if exempt else self.resolved_sign,
            divisor=divisor,
            scale=self.lambda_,
        )
