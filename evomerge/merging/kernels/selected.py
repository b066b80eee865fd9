"""Compiled kernels for merging elements that are selected by their variance over the experts.

Shape letters: E experts, n elements.
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
from evomerge.merging.kernels.jit import inline, jit
from evomerge.merging.philox import RUN
from evomerge.merging.sums import LANES

_GROUPS = 8
_BLOCK = _GROUPS * LANES
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)


@inline
def _variance(sources: Any, i: Any, like: Any, theta_0: Any, are_deltas: Any, share: Any) -> Any:
    """Return `variances.variance_of` one element."""
    origin = _ZERO if are_deltas else theta_0
    first = load(stored_at(sources[0], i, like)) - origin
    total = _ZERO
    for k in range(len(sources)):
        total = total + ((load(stored_at(sources[k], i, like)) - origin) - first)
    mean = total * share
    squares = _ZERO
    for k in range(len(sources)):
        apart = ((load(stored_at(sources[k], i, like)) - origin) - first) - mean
        squares = squares + apart * apart
    return squares * share


@jit
def selected_squares(
    sums: Any,
    origin: Any,
    sources: Any,
    n_elements: Any,
    base_like: Any,
    like: Any,
    are_deltas: Any,
    share: Any,
    threshold: Any,
) -> None:
    """Write (runs, E) float64 sums of squares of the selected task vectors of each run."""
    n, n_experts = n_elements, len(sources)
    base = carray(pointer(origin), (n_elements,), base_like.dtype)
    lanes = np.empty((n_experts, LANES))
    chosen = np.empty((n_experts, _BLOCK), np.float32)
    for run in range(len(sums)):
        lanes[:] = 0.0
        for start in range(run * RUN, min((run + 1) * RUN, n), _BLOCK):
            n_here = min(_BLOCK, n - start)
            if n_here < _BLOCK:
                chosen[:] = _ZERO
            for j in range(np.uint64(n_here)):
                i = np.uint64(start) + j
                theta_0 = load(base[i])
                keep = not _variance(sources, i, like, theta_0, are_deltas, share) < threshold
                for k in range(n_experts):
                    delta = load(stored_at(sources[k], i, like)) - (
                        _ZERO if are_deltas else theta_0
                    )
                    chosen[k, j] = delta if keep else _ZERO
            for k in range(n_experts):
                _add_squares(lanes[k], chosen[k])
        for k in range(n_experts):
            sums[run, k] = 0.0
            for lane in range(LANES):
                sums[run, k] += lanes[k, lane]


@jit
def _add_squares(lanes: Any, values: Any) -> None:
    """Add each square to one of the lanes: a fixed order that runs side by side."""
    for lane in range(np.uint64(LANES)):
        total = lanes[lane]
        for group in range(_GROUPS):
            value = np.float64(values[lane + np.uint64(group * LANES)])
            total += value * value
        lanes[lane] = total


@jit
def selected_sum(
    target: Any,
    origin: Any,
    sources: Any,
    n_elements: Any,
    out_like: Any,
    base_like: Any,
    like: Any,
    are_deltas: Any,
    share: Any,
    threshold: Any,
    weights: Any,
    shares: Any,
) -> Any:
    """Out = base + sum of the selected task vectors with the elected sign / their shares."""
    out = carray(pointer(target), (n_elements,), out_like.dtype)
    base = carray(pointer(origin), (n_elements,), base_like.dtype)
    store(out, 0, _ZERO)
    largest = magnitude(out[0])
    for i in range(np.uint64(out.size)):
        theta_0 = load(base[i])
        keep = not _variance(sources, i, like, theta_0, are_deltas, share) < threshold
        elected = _ZERO
        for k in range(len(sources)):
            delta = load(stored_at(sources[k], i, like)) - (_ZERO if are_deltas else theta_0)
            elected = elected + (delta if keep else _ZERO)
        sign = _ONE if elected >= _ZERO else -_ONE
        total, divisor = _ZERO, _ZERO
        for k in range(len(sources)):
            delta = load(stored_at(sources[k], i, like)) - (_ZERO if are_deltas else theta_0)
            delta = delta if keep else _ZERO
            agrees = not delta * sign <= _ZERO
            total = fma(weights[k], delta if agrees else _ZERO, total)
            divisor += shares[k] if agrees else _ZERO
        total = total / (divisor if divisor != _ZERO else _ONE)
        store(out, i, theta_0 + total)
        largest = larger(largest, magnitude(out[i]))
    return is_finite(largest)
