"""How fast this machine can make a weighted sum of bfloat16 arrays, by any means at hand.

Every variant reads K arrays and writes one, tensor by tensor. Shape letters: K sources.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numba import njit, prange, set_num_threads
from numpy.typing import NDArray
from torch import Tensor

from evomerge.merging.kernels.compiled import weighted_sum
from evomerge.merging.threads import in_threads

Bits = NDArray[np.uint16]
Floats = NDArray[np.float32]
# (flat sources, coefficients, flat output) -> None
WeightedSum = Callable[[Sequence[Tensor], Sequence[float], Tensor], None]
_PASS = 1 << 17
_BITS = np.empty(1, np.uint16)


@njit(inline="always")
def _widen(bits: Any) -> Any:
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


@njit(inline="always")
def _rounded(value: Any) -> Any:
    bits = np.float32(value).view(np.uint32)
    odd = np.uint32(bits >> np.uint32(16)) & np.uint32(1)
    return np.uint16(np.uint32(bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))


def _sum_2(out: Bits, w: Floats, a: Bits, b: Bits) -> None:
    for i in prange(out.size):
        out[i] = _rounded(w[0] * _widen(a[i]) + w[1] * _widen(b[i]))


def _sum_3(out: Bits, w: Floats, a: Bits, b: Bits, c: Bits) -> None:
    for i in prange(out.size):
        out[i] = _rounded(w[0] * _widen(a[i]) + w[1] * _widen(b[i]) + w[2] * _widen(c[i]))


def _sum_4(out: Bits, w: Floats, a: Bits, b: Bits, c: Bits, d: Bits) -> None:
    for i in prange(out.size):
        pair = w[0] * _widen(a[i]) + w[1] * _widen(b[i])
        out[i] = _rounded(pair + w[2] * _widen(c[i]) + w[3] * _widen(d[i]))


def _sum_5(out: Bits, w: Floats, a: Bits, b: Bits, c: Bits, d: Bits, e: Bits) -> None:
    for i in prange(out.size):
        pair = w[0] * _widen(a[i]) + w[1] * _widen(b[i])
        other = w[2] * _widen(c[i]) + w[3] * _widen(d[i])
        out[i] = _rounded(pair + other + w[4] * _widen(e[i]))


_FUSED: Mapping[int, Callable[..., None]] = {2: _sum_2, 3: _sum_3, 4: _sum_4, 5: _sum_5}


def variants(n_sources: int, threads: int) -> dict[str, WeightedSum]:
    """Return name -> a way to compute the sum of K arrays.

    Args:
        n_sources: K; the fused loop is written out for K = 2 to 5.
        threads: How many threads the fused loop may use; torch has its own setting.
    """
    found: dict[str, WeightedSum] = {"torch": _rounding_sum, "torch float32": _float32_sum}
    if n_sources in _FUSED:
        found["numba fused"] = _fused_sum(n_sources, threads)
    found["streamed"] = _streamed_sum
    return found


def copy_first(sources: Sequence[Tensor], coefficients: Sequence[float], out: Tensor) -> None:
    """Copy one array: for reference, not a weighted sum."""
    del coefficients
    out.copy_(sources[0])


@lru_cache
def _fused_sum(n_sources: int, threads: int) -> WeightedSum:
    # Re-association lets the compiler use fused multiply-adds; the ceiling may round as it likes.
    kernel = njit(parallel=threads > 1, fastmath=True)(_FUSED[n_sources])

    def add_up(sources: Sequence[Tensor], coefficients: Sequence[float], out: Tensor) -> None:
        if threads > 1:
            set_num_threads(threads)
        arrays = [source.view(torch.uint16).numpy() for source in sources]
        kernel(out.view(torch.uint16).numpy(), np.float32(coefficients), *arrays)

    return add_up


def _streamed_sum(sources: Sequence[Tensor], coefficients: Sequence[float], out: Tensor) -> None:
    """Use evomerge's own kernel, alone: past the caches it is ahead of the plain loops."""
    target, places = out.data_ptr(), [source.data_ptr() for source in sources]
    weights = tuple(map(np.float32, coefficients))

    def part(start: int, stop: int) -> bool:
        at = tuple([place + 2 * start for place in places])
        return bool(weighted_sum(target + 2 * start, at, weights, stop - start, _BITS, _BITS))

    in_threads(part, out.numel())


def _rounding_sum(sources: Sequence[Tensor], coefficients: Sequence[float], out: Tensor) -> None:
    torch.mul(sources[0], coefficients[0], out=out)
    for source, coefficient in zip(sources[1:], coefficients[1:], strict=True):
        out.add_(source, alpha=coefficient)


def _float32_sum(sources: Sequence[Tensor], coefficients: Sequence[float], out: Tensor) -> None:
    for start in range(0, out.numel(), _PASS):
        part = out[start : start + _PASS]
        total = sources[0][start : start + _PASS].float().mul_(coefficients[0])
        for source, coefficient in zip(sources[1:], coefficients[1:], strict=True):
            total.add_(source[start : start + _PASS], alpha=coefficient)
        part.copy_(total)
