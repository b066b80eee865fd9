"""Twin-Merging without its router: a shared part, and what each expert has beyond it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from evomerge.core.arrays import FloatArray
from evomerge.merging.parameters import check_fields
from evomerge.merging.quantiles import magnitude_threshold
from evomerge.merging.sign_consensus import trim
from evomerge.merging.transform import (
    DeltaInputs,
    Outputs,
    TransformDefaults,
    delta_transform,
    not_a_linear_map,
)
from evomerge.merging.transforms.ranges import check_range
from evomerge.merging.transforms.spectral import as_matrices, thin_svd


@delta_transform("twin")
@dataclass(frozen=True, kw_only=True)
class Twin(TransformDefaults):
    """Exclusive parts e_i = compressed(delta_i - s) and the shared part s = scale * sum delta_i.

    The merge is theta_0 + s + sum_i g_i e_i: the shared part must not grow with the gates, so it
    is an output of its own, after the experts'. With s at weight 1 and one gate open, expert i
    comes back, up to the compression; gates on the simplex are the router's.

    Attributes:
        scale: Of the task arithmetic that makes the shared part.
        keep: Fraction of the exclusive part kept: singular values (rounded down, at least one) or
            elements.
        by: What is cut: the smallest singular values ("svd") or elements ("magnitude").

    Source: Lu et al. 2024 (arXiv:2406.15479) and its code (LZY-the-boys/Twin-Merging,
    discriminative/twin_merge.py and sparsify.py).
    Differs from the paper: gates are searched or given, not predicted per input. Elements that tie
    with the threshold are all kept. Embeddings, heads and routers are not compressed, as vectors
    are not there.
    """

    outputs: ClassVar[Outputs] = "experts"
    extra_outputs: ClassVar[tuple[str, ...]] = ("shared",)

    scale: float = 0.3
    keep: float = 0.2
    by: Literal["svd", "magnitude"] = "svd"

    def __post_init__(self) -> None:
        """Check the fields."""
        check_fields(self)
        check_range(self, "scale", 0.0, 10.0)
        check_range(self, "keep", 0.0, 1.0, open_low=True)

    def fallback(self, name: str, shape: tuple[int, ...]) -> str | None:
        """Keep the exclusive part whole where it is no linear map inside a layer."""
        reason = not_a_linear_map(name, shape)
        return reason and f"{reason.split(',')[0]}, exclusive parts not compressed"

    def transform(self, tensors: DeltaInputs, survey: FloatArray | None) -> tuple[Tensor, ...]:
        """Return (E + 1,) exclusive parts, then the shared part; see `DeltaTransform`."""
        del survey
        shared = self.scale * torch.stack(tensors.deltas).sum(0)
        exclusive = [delta - shared for delta in tensors.deltas]
        if self.fallback(tensors.name, tensors.shape) is None and self.keep < 1.0:
            exclusive = [self._compressed(part) for part in exclusive]
        return (*exclusive, shared)

    def _compressed(self, part: Tensor) -> Tensor:
        if self.by == "magnitude":
            return trim(part, magnitude_threshold(part, self.keep, exact=True))
        (matrix,) = as_matrices([part])
        # A hair more: 0.3 of 10 is 3, whatever the last bit of the product.
        rank = max(1, int(self.keep * min(matrix.shape) + 1e-9))
        return thin_svd(matrix).truncated(rank).product().to(part.dtype).view(part.shape)
