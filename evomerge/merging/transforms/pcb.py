"""PCB-Merging: parameters compete within an expert and balance between experts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from evomerge.core.arrays import FloatArray
from evomerge.errors import ConfigError
from evomerge.merging.exempt import exempt_kind
from evomerge.merging.parameters import check_fields
from evomerge.merging.transform import (
    DeltaInputs,
    Outputs,
    TransformDefaults,
    delta_transform,
    mean_parts,
)
from evomerge.merging.transforms.ranges import check_range
from evomerge.merging.transforms.thinned import ThinnedSample, chunks

_N_BINS = 1 << 15
_LOW_BITS = 16

# Of a balance: exp and tanh of one number differ in the last bits from place to place.
_ROUNDING = 1e-6


@delta_transform("pcb")
@dataclass(frozen=True, kw_only=True)
class Pcb(TransformDefaults):
    """Part i is delta_i s_i / sum_j s_j, s_i the rescaled top of balance_i over the whole model.

    balance_i = exp(E norm(|delta_i|)^2) tanh(delta_i sum_j delta_j): large in its expert, and in
    the direction of the sum. norm is the min-max over the model after clipping the magnitudes.
    s_i runs from 0 at the best balance not kept (or at 0) to 1 at the largest.

    Attributes:
        ratio: Fraction of each expert's elements kept.
        clip: Fraction of the magnitudes clipped at either end; clipped values are merged.

    Source: Du et al. 2024 (arXiv:2410.02396) and its code (duguodong7/pcb-merging,
    pcb-merging.py).
    Differs from the code: vectors and routers get the mean; exp is divided by its largest value,
    which s does not see; elements that oppose the sum are never kept; of models above 2^20
    elements, ranks come from a sample and the largest balance from a histogram. An expert without
    changes has no part.
    Not exactly scale equivariant: tanh bends once task vector elements come near 1.
    """

    outputs: ClassVar[Outputs] = "experts"
    needs_survey: ClassVar[bool] = True

    ratio: float = 0.1
    clip: float = 1e-4

    def __post_init__(self) -> None:
        """Check the fields."""
        check_fields(self)
        check_range(self, "ratio", 0.0, 1.0, open_low=True)
        check_range(self, "clip", 0.0, 0.49)

    def fallback(self, name: str, shape: tuple[int, ...]) -> str | None:
        """Leave out vectors and routers, which must not lose elements."""
        kind = exempt_kind(name, shape, "exempt", "paper")
        return kind and f"{kind}, mean of the task vectors"

    def survey(self, tensors: Iterable[DeltaInputs]) -> FloatArray:
        """Return (E, 4) rows: the ends of the clipped magnitudes and of the kept balances."""
        sample = ThinnedSample()
        peaks: Tensor | None = None
        for tensor in tensors:
            if self.fallback(tensor.name, tensor.shape) is not None:
                continue
            for deltas in chunks(tensor.deltas):
                sample.add(deltas)
                peaks = _with_peaks(peaks, deltas)
        deltas = sample.values()
        if peaks is None or deltas.shape[1] == 0:
            return torch.zeros(len(deltas), 4, dtype=torch.float64).numpy()
        n = deltas.shape[1]
        magnitudes = deltas.abs().sort(dim=1).values
        ends = magnitudes[:, [int(n * self.clip), max(int(n * (1.0 - self.clip) - 1), 0)]]
        ends = torch.stack([ends[:, 0], torch.maximum(ends[:, 0], ends[:, 1])], dim=1)
        balances = balance(deltas.abs(), deltas * deltas.sum(0), ends).sort(dim=1).values
        threshold = balances[:, min(int(n * (1.0 - self.ratio)), n - 1)].clamp(min=0.0)
        edges = (torch.arange(_N_BINS, dtype=torch.int32) << _LOW_BITS).view(torch.float32)
        edges = torch.nan_to_num(edges, nan=0.0, posinf=0.0).expand_as(peaks)
        # The sample may miss the largest balance, which every element is measured against.
        top = torch.maximum(balances[:, -1], balance(edges, peaks, ends).amax(1))
        return torch.cat([ends, torch.stack([threshold, top], 1)], 1).to(torch.float64).numpy()

    def transform(self, tensors: DeltaInputs, survey: FloatArray | None) -> tuple[Tensor, ...]:
        """Return (E,) parts, the shape of the base; see `DeltaTransform`.

        Raises:
            ConfigError: There is no survey.
        """
        if self.fallback(tensors.name, tensors.shape) is not None:
            return mean_parts(tensors.deltas, self.outputs)
        if survey is None:
            raise ConfigError(f"{tensors.name}: pcb needs its survey of the whole model first")
        limits = torch.as_tensor(survey, dtype=torch.float32)
        parts = [torch.cat(pieces) for pieces in zip(*self._pieces(tensors, limits), strict=True)]
        return tuple(part.view(tensors.shape) for part in parts)

    def _pieces(self, tensors: DeltaInputs, limits: Tensor) -> Iterable[Tensor]:
        """Yield (E, c) the parts of the next elements."""
        low, high, threshold, top = (column[:, None] for column in limits.unbind(1))
        span = top - threshold
        is_wide = span > _ROUNDING * top
        for deltas in chunks(tensors.deltas):
            magnitudes = deltas.abs()
            balances = balance(magnitudes, deltas * deltas.sum(0), limits[:, :2])
            excess = balances - threshold
            # The threshold's own element is not kept, whatever its last bit here.
            excess = excess * (excess > _ROUNDING * threshold)
            shares = (excess / torch.where(is_wide, span, 1.0)).clamp(max=1.0)
            # One kept value only is both ends.
            is_top = (balances > 0.0) & (balances >= threshold * (1.0 - _ROUNDING))
            shares = torch.where(is_wide, shares, is_top.to(shares.dtype))
            total = shares.sum(0)
            clipped = deltas.sign() * magnitudes.clamp(low, high)
            yield clipped * shares / torch.where(total > 0.0, total, 1.0)


def balance(magnitudes: Tensor, agreements: Tensor, ends: Tensor) -> Tensor:
    """Return (E, c) balances, divided by exp(E).

    Args:
        magnitudes: (E, c) |delta_i|.
        agreements: (E, c) delta_i sum_j delta_j.
        ends: (E, 2) smallest and largest magnitude of each expert, after clipping.
    """
    low, high = ends[:, :1], ends[:, 1:]
    span = high - low
    norm = (magnitudes.clamp(low, high) - low) / torch.where(span > 0.0, span, 1.0)
    norm = torch.where(span > 0.0, norm, 1.0)
    return torch.exp(len(ends) * (norm.square() - 1.0)) * agreements.tanh()


def _with_peaks(peaks: Tensor | None, deltas: Tensor) -> Tensor:
    """Return (E, 2^15) the largest agreement seen in each bin of magnitudes."""
    if peaks is None:
        peaks = torch.zeros(len(deltas), _N_BINS)
    bins = (deltas.abs().view(torch.int32) >> _LOW_BITS).to(torch.int64)
    return peaks.scatter_reduce(1, bins, deltas * deltas.sum(0), "amax")
