"""DOGE: a common shift that lowers the conflict between experts, outside what they share."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from evomerge.core.arrays import FloatArray
from evomerge.errors import ConfigError
from evomerge.merging.parameters import check_fields
from evomerge.merging.quantiles import n_kept
from evomerge.merging.transform import (
    DeltaInputs,
    Outputs,
    TransformDefaults,
    delta_transform,
    mean_parts,
)
from evomerge.merging.transforms.ranges import check_range
from evomerge.merging.transforms.spectral import as_matrices, thin_svd
from evomerge.merging.transforms.thinned import ThinnedSample, chunks

_BETAS = (0.9, 0.999)


@delta_transform("doge")
@dataclass(frozen=True, kw_only=True)
class Doge(TransformDefaults):
    """Part i is lambda_i mask_i (delta_i + shift), lambda_i = eta / |delta_i| in each tensor.

    `shift` lowers sum_j sum_rows (sum_columns delta_j (delta_j - sum_i lambda_i (delta_i +
    shift)))^2 by Adam from zero; its gradient is projected off the subspace of outputs that the
    experts share. mask_i holds the largest elements of delta_i over the whole model.

    Costs 4 `steps` m n r operations, r the rank of that subspace: the slowest of the transforms.

    Attributes:
        scale: eta. In relative units a multiple of the tensor's mean |delta_i|, so that lambda_i
            is about `scale`.
        step: Rate of Adam. In relative units a multiple of the tensor's mean RMS of delta_i.
        units: "relative", or "weights" for eta and rate as published (0.07 and 1e-4).
        density: Fraction of each expert's elements kept.
        shared: Rank of the shared subspace as a fraction of min(m, n).
        steps: Adam steps; 0 leaves the shift out.

    Source: Wei et al. 2025 (arXiv:2501.01230), code in fusion_bench 0.2.33 (method/doge_ta).
    Differs from the code: relative units by default; there every `weight` of an encoder counts
    in the mask. Directions of zero singular values are not shared ones; elements that did not
    change are never kept; of models above 2^20 elements the masks' thresholds come from a sample.
    An expert that did not change a tensor takes no part in it. The gradient is written out.
    """

    outputs: ClassVar[Outputs] = "experts"
    needs_survey: ClassVar[bool] = True

    scale: float = 0.3
    step: float = 0.1
    units: Literal["relative", "weights"] = "relative"
    density: float = 0.3
    shared: float = 1.0 / 6.0
    steps: int = 400

    def __post_init__(self) -> None:
        """Check the fields."""
        check_fields(self)
        check_range(self, "scale", 0.0, 1e3, open_low=True)
        check_range(self, "step", 0.0, 1e3, open_low=True)
        check_range(self, "density", 0.0, 1.0, open_low=True)
        check_range(self, "shared", 0.0, 1.0)
        check_range(self, "steps", 0, 1_000_000)

    def survey(self, tensors: Iterable[DeltaInputs]) -> FloatArray:
        """Return (E,) the magnitude of the smallest element each mask holds."""
        sample = ThinnedSample()
        for tensor in tensors:
            if self.fallback(tensor.name, tensor.shape) is None:
                for deltas in chunks(tensor.deltas):
                    sample.add(deltas)
        magnitudes = sample.values().abs()
        n = magnitudes.shape[1]
        if n == 0:
            return torch.zeros(len(magnitudes), dtype=torch.float64).numpy()
        rank = n - n_kept(self.density, n)
        return magnitudes.sort(dim=1).values[:, rank].to(torch.float64).numpy()

    def transform(self, tensors: DeltaInputs, survey: FloatArray | None) -> tuple[Tensor, ...]:
        """Return (E,) parts, the shape of the base; see `DeltaTransform`.

        Raises:
            ConfigError: There is no survey.
        """
        if self.fallback(tensors.name, tensors.shape) is not None:
            return mean_parts(tensors.deltas, self.outputs)
        if survey is None:
            raise ConfigError(f"{tensors.name}: doge needs its survey of the whole model first")
        deltas = torch.stack([delta.flatten(1) for delta in tensors.deltas])
        norms = deltas.flatten(1).norm(dim=1, dtype=torch.float64)
        used = norms > 0.0
        if not used.any():
            return tuple(torch.zeros(tensors.shape) for _ in tensors.deltas)
        mean_norm = float(norms[used].mean())
        is_relative = self.units == "relative"
        eta = self.scale * (mean_norm if is_relative else 1.0)
        lambdas = torch.where(used, eta / torch.where(used, norms, 1.0), 0.0).to(torch.float32)
        # Adam's rate and epsilon have units, so relative steps are taken on scaled task vectors.
        unit = mean_norm / math.sqrt(deltas[0].numel()) if is_relative else 1.0
        shift = unit * self._shift(deltas[used] / unit, lambdas[used])
        parts = []
        for delta, scale, threshold in zip(deltas, lambdas, survey, strict=True):
            is_kept = (delta.abs() >= float(threshold)) & (delta != 0.0)
            parts.append((scale * is_kept * (delta + shift)).view(tensors.shape))
        return tuple(parts)

    def _shift(self, deltas: Tensor, lambdas: Tensor) -> Tensor:
        """Return (m, n) the shift for (U, m, n) non-zero task vectors and (U,) scales."""
        shift = torch.zeros_like(deltas[0])
        merged = torch.einsum("u,umn->mn", lambdas, deltas)
        total = lambdas.sum()
        wanted = (deltas * (deltas - merged)).sum(2)
        subspace = shared_outputs(deltas, self.shared)
        first, second = torch.zeros_like(shift), torch.zeros_like(shift)
        epsilon = 1e-8
        for step in range(1, self.steps + 1):
            residual = wanted - total * torch.einsum("umn,mn->um", deltas, shift)
            gradient = -2.0 * total * torch.einsum("um,umn->mn", residual, deltas)
            if step == 1 and self.units == "relative":
                # Where the projection removes the gradient only rounding is left of it, which
                # Adam would blow up to full steps.
                epsilon += 1e-3 * float(gradient.square().mean().sqrt())
            gradient -= subspace @ (subspace.T @ gradient)
            first.lerp_(gradient, 1.0 - _BETAS[0])
            second.mul_(_BETAS[1]).addcmul_(gradient, gradient, value=1.0 - _BETAS[1])
            spread = second.sqrt().div_(math.sqrt(1.0 - _BETAS[1] ** step)).add_(epsilon)
            shift.addcdiv_(first, spread, value=-self.step / (1.0 - _BETAS[0] ** step))
        return shift


def shared_outputs(deltas: Tensor, fraction: float) -> Tensor:
    """Return (m, r) orthonormal outputs that (U, m, n) task vectors share most.

    They are the leading left singular vectors of all task vectors' leading left singular
    vectors side by side, min(m, n) // U of each; r is `fraction` of min(m, n), rounded down.
    """
    smallest = min(deltas[0].shape)
    n_each = smallest // len(deltas)
    leading = [thin_svd(delta).truncated(n_each).left for delta in as_matrices(tuple(deltas))]
    # A hair more: 1/6 of 12 is 2, whatever the last bit of the product.
    rank = int(fraction * smallest + 1e-9)
    return thin_svd(torch.cat(leading, 1)).truncated(rank).left.to(deltas.dtype)
