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
    fma,
    is_finite,
    larger,
    load,
    magnitude,
    pointer,
    store,
    stored_at,
)
from evomerge.merging.kernels.jit import jit
from evomerge.merging.philox import RUN

_ZERO = np.float32(0.0)


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
    largest = _zero(target)
    for i in range(np.uint64(n_elements)):
        total = _ZERO
        for k in range(len(sources)):
            total = fma(coefficients[k], load(stored_at(sources[k], i, like)), total)
        store(target, i, total)
        largest = larger(largest, magnitude(target[i]))
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
