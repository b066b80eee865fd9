"""Model Stock: between the base and the mean of the experts, as far as they agree.

Shape letters: E experts, R rows (output channels) of a tensor, n elements per row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import combinations
from typing import Annotated, ClassVar

import numpy as np
import torch
from torch import Tensor

from evomerge.core.arrays import FloatArray
from evomerge.core.genes import Gene
from evomerge.errors import ConfigError
from evomerge.merging.operator import Compat, OperatorDefaults, TensorInputs, merge_operator
from evomerge.merging.parameters import check_fields
from evomerge.merging.passes import add_in_passes, row_blocks
from evomerge.merging.sphere import required_gram
from evomerge.merging.sums import ROW, row_sums, total
from evomerge.merging.weights import over_base

# mergekit's smallest product of two lengths.
_MERGEKIT_SMALLEST = 1e-6


@merge_operator("model_stock")
@dataclass(frozen=True, kw_only=True)
class ModelStock(OperatorDefaults):
    """theta_0 + multiplier * t * mean_k delta_k with t = E c / (1 + (E - 1) c), kept in [0, 1].

    c is the mean cosine of two task vectors: parallel ones give the mean of the experts,
    orthogonal or opposed ones the base. Nothing is random and there are no weights.

    Attributes:
        multiplier: Factor of t; 1 in the paper.
        filter_wise: One t per output channel (index of the first axis) instead of one per
            tensor; tensors with at most one axis always have one.
        compat: "mergekit" does not keep t in [0, 1], takes products of lengths below 1e-6 for
            1e-6, and has one t per vector along the last axis when `filter_wise` is on.

    Raises:
        ConfigError: There is only one expert (when merging).

    Source: Jang et al. 2024, arXiv:2403.19522.
    Differs from the paper, which gives the formula for two experts of one angle: c is the mean
    over all pairs, as in mergekit. A task vector without length has cosine 0 to all others.
    """

    needs_gram: ClassVar[bool] = True

    multiplier: Annotated[float, Gene(0.5, 1.5, minimum=0.0)] = 1.0
    filter_wise: bool = False
    compat: Compat = "paper"

    def __post_init__(self) -> None:
        """Check the fields."""
        check_fields(self)

    def merge(self, tensors: TensorInputs) -> Tensor:
        """Return the merged tensor.

        Raises:
            ConfigError: There is only one expert.
        """
        n_experts = len(tensors.experts)
        if n_experts < 2:
            raise ConfigError(
                f"{tensors.name}: model_stock measures how far experts agree and needs at least "
                "two; merge one expert with task_arithmetic"
            )
        if self.filter_wise and not tensors.is_vector:
            return self._merge_rows(tensors)
        return tensors.weighted_sum(self.coefficients(required_gram(tensors)))

    def coefficients(self, gram: FloatArray) -> tuple[float, ...]:
        """Return (K,) coefficients over the sources for one t per tensor.

        Args:
            gram: (K, K) of the tensor over (s_0, s_1 - s_0, …), the base first; two experts or
                more.
        """
        n_experts = len(gram) - 1
        share = _share(gram[1:, 1:].tobytes(), n_experts, self.compat) * self.multiplier / n_experts
        return over_base([share] * n_experts)

    def _merge_rows(self, tensors: TensorInputs) -> Tensor:
        """Return the merged tensor with one t per row, from Gram matrices of the rows."""
        shape = tensors.experts[0].shape
        length = shape[-1] if self.compat == "mergekit" else math.prod(shape[1:])
        out = tensors.empty_result()
        for part, target in row_blocks(tensors, out, length):
            shares = _shares(_row_grams(part).numpy(), self.compat)
            factors = torch.from_numpy(shares * (self.multiplier / len(part.experts)))
            add_in_passes(part, partial(_scaled_sum, factors.to(out.device)), out=target)
        return out


def _scaled_sum(factors: Tensor, _at: slice, deltas: list[Tensor]) -> Tensor:
    """Return the sum of task vectors times factors: (R,) those of whole rows, or a piece's one."""
    summed = deltas[0]
    for delta in deltas[1:]:
        summed += delta
    return summed.view(len(factors), -1).mul_(factors.float()[:, None]).view(-1)


@lru_cache(maxsize=1 << 14)
def _share(content: bytes, n_experts: int, compat: Compat) -> float:
    """Return t for one Gram matrix of task vectors, the same for every candidate of a search."""
    points = np.frombuffer(content).reshape(n_experts, n_experts, 1)
    return float(_shares(points, compat)[0])


def _shares(points: FloatArray, compat: Compat) -> FloatArray:
    """Return (R,) t for (E, E, R) float64 Gram matrices of task vectors."""
    n = len(points)
    one, other = map(list, zip(*combinations(range(n), 2), strict=True))
    lengths = np.sqrt(points.diagonal().T)
    products = lengths[one] * lengths[other]
    if compat == "mergekit":
        products = np.maximum(products, _MERGEKIT_SMALLEST)
    cosines = np.divide(
        points[one, other], products, out=np.zeros_like(products), where=products != 0.0
    )
    mean = np.minimum(np.maximum(cosines, -1.0), 1.0).mean(0)
    divisor = 1.0 + (n - 1) * mean
    shares: FloatArray = np.divide(n * mean, divisor, out=np.zeros_like(mean), where=divisor != 0.0)
    if compat == "mergekit":
        return shares
    # mean >= -1 / (n - 1): where it is negative, t would be negative too. NaN stays.
    shares = np.where(mean <= 0.0, 0.0, np.minimum(shares, 1.0))
    return shares


def _row_grams(tensors: TensorInputs) -> Tensor:
    """Return (E, E, R) float64 Gram matrices of the rows of (R, n) task vectors.

    Args:
        tensors: One row, or rows of a single pass: one of `passes.row_blocks`.
    """
    n_rows, length = tensors.experts[0].shape
    n = len(tensors.experts)
    pairs = [(i, j) for i in range(n) for j in range(i, n)]

    def sums(deltas: list[Tensor]) -> Tensor:
        rows = [delta.view(n_rows, -1) for delta in deltas]
        run = min(length, ROW)
        return torch.stack([row_sums(rows[i].double() * rows[j], run) for i, j in pairs])

    found = total((sums(deltas) for _, deltas in tensors.delta_slices(range(n), run=ROW)), length)
    grams = torch.zeros(n, n, n_rows, dtype=torch.float64)
    for (i, j), gram in zip(pairs, found, strict=True):
        grams[i, j] = grams[j, i] = gram
    return grams
