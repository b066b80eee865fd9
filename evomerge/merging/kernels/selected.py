"""Compiled kernels for merging elements that are selected by their variance over the experts.

Shape letters: E experts, n elements.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from evomerge.merging.kernels.intrinsics import fma, is_finite, larger, load, magnitude, store
from evomerge.merging.kernels.jit import inline, jit
from evomerge.merging.philox import RUN

LANES = 64
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)


@inline
def _variance(sources: Any, i: Any, theta_0: Any, are_deltas: Any, share: Any) -> Any:
    """Return `variances.variance_of` one element."""
    origin = _ZERO if are_deltas else theta_0
    first = load(sources[0][i]) - origin
    total = _ZERO
    for k in range(len(sources)):
        total = total + ((load(sources[k][i]) - origin) - first)
    mean = total * share
    squares = _ZERO
    for k in range(len(sources)):
        apart = ((load(sources[k][i]) - origin) - first) - mean
        squares = squares + apart * apart
    return squares * share


@jit
def selected_squares(base: Any, sources: Any, are_deltas: Any, share: Any, threshold: Any) -> Any:
    """Return (runs, E) float64 sums of squares of the selected task vectors."""
    n, n_experts = base.size, len(sources)
    sums = np.zeros(((n + RUN - 1) // RUN, n_experts))
    lanes = np.empty(LANES)
    chosen = np.empty((n_experts, RUN), np.float32)
    for run in range(len(sums)):
        start = run * RUN
        stop = min(start + RUN, n)
        if stop - start < RUN:
            chosen[:] = _ZERO
        for j in range(np.uint64(stop - start)):
            i = np.uint64(start) + j
            theta_0 = load(base[i])
            keep = _variance(sources, i, theta_0, are_deltas, share) >= threshold
            for k in range(n_experts):
                delta = load(sources[k][i]) - (_ZERO if are_deltas else theta_0)
                chosen[k, j] = delta if keep else _ZERO
        for k in range(n_experts):
            row = chosen[k].reshape((RUN // LANES, LANES))
            # Lanes instead of one sum: a fixed order that the processor can add side by side.
            lanes[:] = 0.0
            for j in range(RUN // LANES):
                for lane in range(LANES):
                    value = np.float64(row[j, lane])
                    lanes[lane] += value * value
            for lane in range(LANES):
                sums[run, k] += lanes[lane]
    return sums


@jit
def selected_sum(
    out: Any,
    base: Any,
    sources: Any,
    are_deltas: Any,
    share: Any,
    threshold: Any,
    weights: Any,
    shares: Any,
) -> Any:
    """Out = base + sum of the selected task vectors with the elected sign / their shares."""
    store(out, 0, _ZERO)
    largest = magnitude(out[0])
    for i in range(np.uint64(out.size)):
        theta_0 = load(base[i])
        keep = _variance(sources, i, theta_0, are_deltas, share) >= threshold
        elected = _ZERO
        for k in range(len(sources)):
            delta = load(sources[k][i]) - (_ZERO if are_deltas else theta_0)
            elected = elected + (delta if keep else _ZERO)
        sign = _ONE if elected >= _ZERO else -_ONE
        total, divisor = _ZERO, _ZERO
        for k in range(len(sources)):
            delta = load(sources[k][i]) - (_ZERO if are_deltas else theta_0)
            delta = delta if keep else _ZERO
            agrees = delta * sign > _ZERO
            total = fma(weights[k], delta if agrees else _ZERO, total)
            divisor += shares[k] if agrees else _ZERO
        total = total / (divisor if divisor != _ZERO else _ONE)
        store(out, i, theta_0 + total)
        largest = larger(largest, magnitude(out[i]))
    return is_finite(largest)
