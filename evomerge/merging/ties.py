"""TIES: trim small changes, elect a sign per element, combine the experts that agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from torch import Tensor

from evomerge.core.genes import Gene
from evomerge.merging.exempt import Vectors, exempt_kind
from evomerge.merging.kept import Divisor, Keep, Vote, merge_kept, rescaled
from evomerge.merging.operator import Compat, OperatorDefaults, TensorInputs, merge_operator
from evomerge.merging.parameters import check_fields
from evomerge.merging.sign_consensus import resolve_divisor, resolve_vote
from evomerge.merging.weights import over_base


@merge_operator("ties")
@dataclass(frozen=True, kw_only=True)
class Ties(OperatorDefaults):
    """theta_0 + lambda_ * sum_{k in A} w_k d_k / divisor, A the experts of the elected sign.

    d_k is the task vector with all but its largest `density` elements set to zero; the elected
    sign of an element is that of sum_k d_k (or sum_k w_k d_k), + where it is zero.

    ==============  ==============================  =====================================
    setting         `compat: paper`                 `compat: mergekit`
    ==============  ==============================  =====================================
    ``threshold``   "global": over the whole model  "tensor": in each tensor
    ``sign``        "unweighted"                    "weighted"
    ``divisor``     "mean": number of A             "signed_weights": sum of A's weights
    ``vectors``     "exempt": norms, biases and     "include"
                    routers are combined without
                    trim or vote
    ==============  ==============================  =====================================

    Any of the four can be set apart. Divisor "weights" is the sum of A's absolute weights:
    like mergekit's for positive weights, and does not explode for negative ones. With it or
    mergekit's, only the ratios of the weights count; "none" divides by nothing.

    Attributes:
        weights: (E,) one per expert; all 1 in the paper.
        density: Fraction of elements kept, at least one.
        lambda_: Common scale.
        compat: Where the settings left at "auto" come from.
        threshold: Over what the density is counted.
        sign: Whether the vote is weighted.
        divisor: See the table.
        vectors: What happens to tensors with at most one axis, and to routers.
        rescale: "l1" restores each trimmed task vector's sum of magnitudes.

    Source: Yadav et al. 2023, arXiv:2306.01708.
    Differs from the paper: norms, biases and routers are exempt. Elements that tie with the
    threshold are all kept.
    """

    needs_thresholds: ClassVar[bool] = True

    weights: tuple[Annotated[float, Gene(0.0, 1.0)], ...]
    density: Annotated[float, Gene(0.05, 1.0, minimum=0.0, maximum=1.0)] = 0.2
    lambda_: Annotated[float, Gene(0.3, 2.0)] = 1.0
    compat: Compat = "paper"
    threshold: Literal["auto", "global", "tensor"] = "auto"
    sign: Literal["auto", "weighted", "unweighted"] = "auto"
    divisor: Literal["auto", "mean", "weights", "signed_weights", "none"] = "auto"
    vectors: Vectors = "auto"
    rescale: Literal["l1", "none"] = "none"

    def __post_init__(self) -> None:
        """Check the fields."""
        check_fields(self)

    def fallback(self, name: str, shape: tuple[int, ...]) -> str | None:
        """Return how such a tensor is merged instead, or None."""
        kind = exempt_kind(name, shape, self.vectors, self.compat)
        return kind and f"{kind}, combined without trim or vote"

    @property
    def resolved_threshold(self) -> Literal["global", "tensor"]:
        """The threshold with "auto" resolved."""
        if self.threshold != "auto":
            return self.threshold
        return "global" if self.compat == "paper" else "tensor"

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
        is_exempt = self.fallback(tensors.name, tuple(tensors.experts[0].shape)) is not None
        if len(self.weights) == 1 and (is_exempt or self.density >= 1.0):
            return tensors.weighted_sum(over_base([self.lambda_ * self._lone_weight()]))
        trims = not is_exempt and self.density < 1.0
        keeps = [self._keep(tensors, k) if trims else Keep() for k in range(len(self.weights))]
        return merge_kept(
            tensors,
            keeps,
            self.weights,
            vote=None if is_exempt else self.resolved_sign,
            divisor=self.resolved_divisor,
            scale=self.lambda_,
        )

    def _lone_weight(self) -> float:
        """Return what a single expert's task vector is multiplied by; it agrees with itself."""
        weight = self.weights[0]
        below = {"weights": abs(weight), "signed_weights": weight}
        return weight / below.get(self.resolved_divisor, 1.0)

    def _keep(self, tensors: TensorInputs, expert: int) -> Keep:
        threshold = tensors.threshold(
            expert, self.density, scope=self.resolved_threshold, exact=self.compat == "mergekit"
        )
        return rescaled(Keep(low=threshold), tensors, expert, self.rescale)
