"""Evo-Merging: sparsified task vectors with signed scales, on adapters or on whole weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from evomerge.core.genes import Gene
from evomerge.errors import ConfigError
from evomerge.merging.exempt import exempt_kind
from evomerge.merging.low_rank import LowRank, concatenate
from evomerge.merging.operator import OperatorDefaults, TensorInputs, merge_operator
from evomerge.merging.parameters import check_fields
from evomerge.merging.passes import add_in_passes
from evomerge.merging.quantiles import magnitude_threshold
from evomerge.merging.sign_consensus import trim
from evomerge.merging.weights import over_base

Coupling = Literal["b_only", "both", "sqrt"]


@merge_operator("evo_merging")
@dataclass(frozen=True, kw_only=True)
class EvoMerging(OperatorDefaults):
    """theta_0 + sum_k beta_k top_alpha_k(delta_k).

    top_alpha keeps the largest `alpha` share of a tensor's elements by magnitude, at least one and
    ties with the last. Where experts are adapters of the base it prunes A and leaves B dense:

    ===========  ====================================================================
    task vector  what is added to the base, A'_k = top_alpha_k(A_k), scales in B_k
    ===========  ====================================================================
    dense        sum_k beta_k top_alpha_k(delta_k)
    ``b_only``   sum_k beta_k B_k A'_k: rank sum r_k, no expert touches another
    ``both``     (sum_k beta_k B_k) (sum_k beta_k A'_k): the authors' code, rank r
    ``sqrt``     (sum_k sgn(beta_k) sqrt|beta_k| B_k) (sum_k sqrt|beta_k| A'_k), rank r
    ===========  ====================================================================

    Where some experts are adapters and some are not, each group is added by its own line.

    Attributes:
        alpha: (E,) share of elements kept; the authors search it first, from 1.
        beta: (E,) scales; negative ones push away. The authors search them second, from 1/E.
        coupling: How the scales enter the factors.

    Raises:
        ConfigError: (from `merge`) `both` or `sqrt` on adapters of different ranks.

    Source: arXiv:2509.12951, code Chansl-Lucky/Black-Box-Merging.
    Differs from the code, unless `coupling` is "both": there beta multiplies both factors, so that
    an expert's own term gets beta squared, whose sign is lost, and every pair of experts adds a
    cross term. Tensors with at most one axis, and routers, are not pruned.
    """

    needs_factors: ClassVar[bool] = True

    alpha: tuple[Annotated[float, Gene(0.0, 1.0, minimum=0.0, maximum=1.0, initial=1.0)], ...]
    beta: tuple[Annotated[float, Gene(-1.5, 1.5)], ...]
    coupling: Coupling = "b_only"

    def __post_init__(self) -> None:
        """Check the fields."""
        check_fields(self)

    def fallback(self, name: str, shape: tuple[int, ...]) -> str | None:
        """Return how such a tensor is merged instead, or None."""
        kind = exempt_kind(name, shape, "exempt", "paper")
        return kind and f"{kind}, not pruned"

    def _shares(self, name: str, shape: tuple[int, ...]) -> tuple[float, ...]:
        return self.alpha if self.fallback(name, shape) is None else (1.0,) * len(self.alpha)

    def merge(self, tensors: TensorInputs) -> Tensor:
        """Return the merged tensor."""
        factors = tensors.factors or (None,) * len(self.beta)
        is_dense = self.coupling == "b_only" or all(part is None for part in factors)
        shares = self._shares(tensors.name, tuple(tensors.experts[0].shape))
        if tensors.is_vector or (is_dense and min(shares) >= 1.0):
            return tensors.weighted_sum(over_base(self.beta))
        known = [(k, part) for k, part in enumerate(factors) if part is not None]
        product = None
        if known:
            merged = self._merged([k for k, _ in known], [part for _, part in known], tensors.name)
            product = merged.product().reshape(-1)
        dense = [k for k, part in enumerate(factors) if part is None and self.beta[k] != 0.0]
        thresholds = [tensors.threshold(k, shares[k]) if shares[k] < 1.0 else 0.0 for k in dense]

        def change(at: slice, deltas: list[Tensor]) -> Tensor:
            shape, device = (at.stop - at.start,), tensors.experts[0].device
            total = torch.zeros(shape, device=device) if product is None else product[at].clone()
            for k, threshold, delta in zip(dense, thresholds, deltas, strict=True):
                total.add_(trim(delta, threshold), alpha=self.beta[k])
            return total

        return add_in_passes(tensors, change, dense)

    def merged_factors(self, factors: tuple[LowRank, ...], name: str) -> LowRank:
        """Return the factors of merged - base, given those of all (E,) experts."""
        return self._merged(list(range(len(factors))), list(factors), name)

    def _merged(self, experts: list[int], factors: list[LowRank], name: str) -> LowRank:
        beta, shares = [self.beta[k] for k in experts], self._shares(name, factors[0].shape)
        pruned = [
            LowRank(_top(part.a, shares[k]), part.b, part.is_transposed)
            for k, part in zip(experts, factors, strict=True)
        ]
        if self.coupling == "b_only":
            return concatenate(pruned, beta)
        # An adapter that leaves this tensor alone adds nothing to either sum.
        scaled = [(part, c) for part, c in zip(pruned, beta, strict=True) if part.rank]
        kinds = {(part.rank, part.is_transposed) for part, _ in scaled}
        if len(kinds) > 1:
            ranks = sorted({part.rank for part, _ in scaled})
            raise ConfigError(
                f"{name}: coupling {self.coupling!r} adds the factors of the adapters, which have "
                f"the ranks {ranks} or are stored differently. Use coupling: b_only."
            )
        if not scaled:
            return pruned[0]
        on_b: Callable[[float], float] = float
        on_a: Callable[[float], float] = float
        if self.coupling == "sqrt":
            on_b, on_a = _signed_root, lambda c: math.sqrt(abs(c))
        a = torch.stack([on_a(c) * part.a for part, c in scaled]).sum(0)
        b = torch.stack([on_b(c) * part.b for part, c in scaled]).sum(0)
        return LowRank(a, b, scaled[0][0].is_transposed)


def _signed_root(value: float) -> float:
    return math.copysign(math.sqrt(abs(value)), value)


def _top(values: Tensor, share: float) -> Tensor:
    if share >= 1.0 or values.numel() == 0:
        return values
    return trim(values, magnitude_threshold(values, share, exact=True))
