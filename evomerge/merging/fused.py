"""Weighted sums in one pass, and what every fused pass shares: which arrays a kernel can take.

On the CPU large float32 and bfloat16 tensors go through compiled kernels; everything else, CUDA
included, through plain torch with the same arithmetic: float32 fused multiply-adds in the order
given, one rounding at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evomerge.merging.threads import in_threads

# Below this many elements the compiled kernels' call and first import cost more than they save.
MIN_ELEMENTS = 1 << 16
# More would make compilation long: loops over sources are unrolled.
MAX_SOURCES = 24
# Elements per pass of the torch version: the slices of a pass should fit a CPU's cache, and float64
# copies of all experts' a small GPU.
_CPU_PASS, _GPU_PASS = 1 << 17, 1 << 24

FLOAT16_LIMIT = 65504.0  # largest finite number

Array = np.ndarray[Any, Any]
# Arrays that stand for the dtypes that kernels take: they get bfloat16 as its bits.
_LIKE: Mapping[torch.dtype, Array] = MappingProxyType(
    {torch.bfloat16: np.empty(0, np.uint16), torch.float32: np.empty(0, np.float32)}
)
# ((weight, tensor) pairs, out) -> whether the result is known to be finite; see `weighted_sum`
WeightedSum = Callable[[Sequence[tuple[float, Tensor]], Tensor], bool]


def as_array(tensor: Tensor) -> Array | None:
    """Return a flat view for a compiled kernel, bfloat16 as uint16; None when it cannot take it."""
    if not tensor.is_cpu or not tensor.is_contiguous():
        return None
    if tensor.requires_grad:
        tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.uint16)
    elif tensor.dtype != torch.float32:
        return None
    array: Array = tensor.numpy().reshape(-1)
    return array


def kernel_arrays(sources: Sequence[Tensor], least: int = MIN_ELEMENTS) -> tuple[Array, ...] | None:
    """Return the arrays that a compiled kernel reads or writes, or None when torch has to do it.

    Args:
        sources: At most `MAX_SOURCES`, all of one dtype.
        least: Elements from which on a kernel is used.
    """
    if not 0 < len(sources) <= MAX_SOURCES or sources[0].numel() < max(least, 1):
        return None
    dtype = sources[0].dtype
    arrays: list[Array] = []
    for tensor in sources:
        array = as_array(tensor) if tensor.dtype == dtype else None
        if array is None:
            return None
        arrays.append(array)
    return tuple(arrays)


def addresses(
    sources: Sequence[Tensor], least: int = MIN_ELEMENTS
) -> tuple[tuple[int, ...], Array] | None:
    """Return the addresses of what a kernel reads or writes, and an array of their dtype.

    Args:
        sources: See `kernel_arrays`; None is returned where that returns None.
        least: Elements from which on a kernel is used.
    """
    like = _LIKE.get(sources[0].dtype) if sources else None
    if like is None or len(sources) > MAX_SOURCES or sources[0].numel() < max(least, 1):
        return None
    if not _are_flat(sources, sources[0]):
        return None
    return tuple([tensor.data_ptr() for tensor in sources]), like


def pass_size(tensor: Tensor) -> int:
    """Return how many elements a pass of plain torch should take."""
    return _CPU_PASS if tensor.device.type == "cpu" else _GPU_PASS


def write_rounded(out: Tensor, values: Tensor) -> None:
    """Round float32 `values` into `out`; fp16 is clamped to its finite range."""
    if out.dtype == torch.float16:
        values = values.clamp(-FLOAT16_LIMIT, FLOAT16_LIMIT)
    out.copy_(values)


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor in another float dtype; what is finite stays so in fp16."""
    narrow = tensor.to(dtype)
    if dtype != torch.float16 or tensor.dtype == dtype or not bool(narrow.isinf().any()):
        return narrow
    # Clamped in fp16: bfloat16 has no number at the limit, and float8 cannot be clamped.
    limited = narrow.clamp(-FLOAT16_LIMIT, FLOAT16_LIMIT)
    return torch.where(tensor.double().isinf(), narrow, limited)


def weighted_sum(
    terms: Sequence[tuple[float, Tensor]], out: Tensor, *, least: int = MIN_ELEMENTS
) -> bool:
    """Write sum_k weight_k * tensor_k into `out`, accumulated in float32 and rounded once.

    Args:
        terms: (weight, tensor) pairs, all of the shape of `out`, in any float dtype.
        out: Contiguous.
        least: Elements from which on the compiled kernel is used.

    Returns:
        Whether the result is known to be finite; False when it is not or was not looked at.
    """
    like, out_like = _LIKE.get(terms[0][1].dtype) if terms else None, _LIKE.get(out.dtype)
    fits = len(terms) <= MAX_SOURCES and out.numel() >= max(least, 1)
    if like is None or out_like is None or not fits or not _are_flat([t for _, t in terms], out):
        torch_weighted_sum(terms, out)
        return False
    from evomerge.merging.kernels import compiled

    coefficients = tuple([np.float32(weight) for weight, _ in terms])
    target, places = out.data_ptr(), [tensor.data_ptr() for _, tensor in terms]

    def part(start: int, stop: int) -> bool:
        skipped = start * like.itemsize
        finite: bool = compiled.weighted_sum(
            target + start * out_like.itemsize,
            tuple([place + skipped for place in places]),
            coefficients,
            stop - start,
            out_like,
            like,
        )
        return finite

    return in_threads(part, out.numel())


def _are_flat(sources: Sequence[Tensor], out: Tensor) -> bool:
    """Return whether kernels can take the addresses: one dtype, in this memory, without gaps."""
    dtype = sources[0].dtype
    return (
        out.is_cpu
        and out.is_contiguous()
        and all([t.dtype == dtype and t.is_cpu and t.is_contiguous() for t in sources])
    )


def torch_weighted_sum(terms: Sequence[tuple[float, Tensor]], out: Tensor) -> None:
    """Do what `weighted_sum` does, in plain torch on any device and dtype."""
    target = out.view(-1)
    flat = [(weight, tensor.reshape(-1)) for weight, tensor in terms]
    step = pass_size(out)
    for start in range(0, out.numel(), step):
        part = target[start : start + step]
        total = torch.zeros(part.shape, dtype=torch.float32, device=out.device)
        for weight, tensor in flat:
            total.add_(tensor[start : start + step].float(), alpha=weight)
        write_rounded(part, total)
