"""The compiled kernels: every source element is read once, every result written once.

Arithmetic is float32 with fused multiply-adds in a fixed order and one rounding at the end, bit for
bit that of the plain torch version in `fused`. A loop over sources inside a loop
over elements is unrolled by the compiler, because the number of sources is part of a tuple's type.

Every kernel returns whether all it wrote is finite, looked up while it is in the cache.

Shape letters: K sources, n elements, P candidates.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from evomerge.merging.kernels.intrinsics import (
    fence,
    fma,
    is_finite,
    larger,
    load,
    magnitude,
    pointer,
    stack,
    store,
    stored_at,
    stream,
)
from evomerge.merging.kernels.jit import jit
from evomerge.merging.philox import RUN

_ZERO = np.float32(0.0)
# Results that wait on the stack until they are streamed: 512, in two bytes each or in four.
_ROW = 512
_BFLOAT16_BYTES, _FLOAT32_BYTES = 2 * _ROW, 4 * _ROW


@jit
def _zero(out: Any) -> Any:
    """Return the magnitude of a zero stored in `out`, which is overwritten later."""
    store(out, 0, _ZERO)
    return magnitude(out[0])


@jit
def weighted_sum(
    out: Any, sources: Any, coefficients: Any, n_elements: Any, out_like: Any, like: Any
) -> Any:
    """Out = sum_k coefficients[k] * sources[k].

    The result goes past the caches, a row of whole cache lines at a time: otherwise the processor
    would read what it is about to overwrite.

    Addresses, because boxing arrays would cost a tenth of the time of an ordinary tensor.

    Args:
        out: Address of the result.
        sources: (K,) tuple of addresses.
        coefficients: (K,) tuple of float32.
        n_elements: n, at least 1.
        out_like: Any array of the result's dtype.
        like: Any array of the sources' dtype.
    """
    target = carray(pointer(out), (n_elements,), out_like.dtype)
    row = carray(stack((0,), _FLOAT32_BYTES), (_ROW,), out_like.dtype)
    largest = _zero(row)
    head = -out % 64 // out_like.itemsize  # elements before the first cache line
    for start in range(head - _ROW, n_elements, _ROW):
        begin = np.uint64(max(start, 0))
        n_here = np.uint64(min(start + _ROW, n_elements)) - begin
        for j in range(n_here):
            i = begin + j
            total = _ZERO
            for k in range(len(sources)):
                total = fma(coefficients[k], load(stored_at(sources[k], i, like)), total)
            store(row, j, total)
            largest = larger(largest, magnitude(row[j]))
        if n_here < _ROW:
            for j in range(n_here):
                target[begin + j] = row[j]
        elif out_like.itemsize == 2:
            stream(out + 2 * start, row, _BFLOAT16_BYTES)
        else:
            stream(out + 4 * start, row, _FLOAT32_BYTES)
    fence()
    return is_finite(largest)


@jit
def population_sum(outs: Any, like: Any, sources: Any, coefficients: Any) -> Any:
    """outs[p] = sum_k coefficients[p, k] * sources[k], a run of the sources at a time.

    Args:
        outs: (P,) int64 addresses of the results, each of n elements like `like`.
        like: Any array of the results' dtype.
        sources: (K,) tuple of (n,).
        coefficients: (P, K) float32.
    """
    n_elements = sources[0].size
    largest = magnitude(like[0])
    for start in range(0, n_elements, RUN):
        stop = min(start + RUN, n_elements)
        for p in range(outs.size):
            out = carray(pointer(outs[p]), (n_elements,), like.dtype)
            for i in range(np.uint64(start), np.uint64(stop)):
                total = _ZERO
                for k in range(len(sources)):
                    total = fma(coefficients[p, k], load(sources[k][i]), total)
                store(out, i, total)
                largest = larger(largest, magnitude(out[i]))
    return is_finite(largest)
