"""The compiled kernel for merging task vectors trimmed by magnitude, nothing dropped at random.

As in `kernels.kept`, rows of 256 elements are gone over in two steps where signs are elected. Rows
begin at a cache line of the result, as in `compiled.weighted_sum`; what is before the first and
after the last whole one is merged on the stack. With whole rows only, elements are taken in pairs,
which is a sixth faster.

Shape letters: E experts, n elements.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numba import carray

from evomerge.merging.kernels.intrinsics import fence, flipped, fma, pointer, stack, stream
from evomerge.merging.kernels.jit import inline, jit
from evomerge.merging.kernels.kept import within
from evomerge.merging.kernels.pairs import element, put_pair

_ZERO, _ONE = np.float32(0.0), np.float32(1.0)
_SIGN = np.uint32(0x80000000)
_ROW = 256
_PAIRS = _ROW // 2
# A row on the stack, and a cache line more: addresses whose low bits are the same get into each
# other's way.
_SPACED = _ROW + 16
_SPACED_BYTES = 4 * _SPACED
_BFLOAT16_BYTES, _FLOAT32_BYTES = 2 * _ROW, 4 * _ROW


@jit
def _copy(target: Any, source: Any, n_bytes: Any) -> None:
    """Copy bytes from one address to another."""
    there = carray(pointer(target), (n_bytes,), np.uint8)
    here = carray(pointer(source), (n_bytes,), np.uint8)
    for i in range(n_bytes):
        there[i] = here[i]


@inline
def _kept(value: Any, theta_0: Any, low: Any, high: Any, switches: Any) -> Any:
    """Return one element of a task vector, zero where it is trimmed."""
    are_deltas, has_low, has_high = switches
    delta = value if are_deltas else value - theta_0
    return delta if within(delta, low, high, has_low, has_high) else _ZERO


@lru_cache
def trimmed_sum(
    *, has_low: bool, has_high: bool, are_deltas: bool, vote: str, turns: bool, divides: bool
) -> Callable[..., Any]:
    """Return the kernel of `kept.merge_kept` without random masks, for some switches.

    Args:
        has_low: Magnitudes below `low` are dropped.
        has_high: Magnitudes above `high` are dropped.
        are_deltas: `sources` hold task vectors instead of experts.
        vote: "elect", "touched" or "none".
        turns: Some of `directions` are not 0.
        divides: Divide by the shares of the experts that agree.
    """
    elects, passes_all = vote == "elect", vote == "none"
    switches = (are_deltas, has_low, has_high)

    @jit
    def kernel(
        target: Any,
        origin: Any,
        sources: Any,
        n_elements: Any,
        out_like: Any,
        base_like: Any,
        like: Any,
        low: Any,
        high: Any,
        votes: Any,
        directions: Any,
        weights: Any,
        shares: Any,
    ) -> Any:
        n_experts = len(sources)
        at = carray(stack(sources, 8), (n_experts,), np.int64)
        deltas = carray(stack(sources, _SPACED_BYTES), (n_experts, _SPACED), np.float32)
        signs = carray(stack((0,), _SPACED_BYTES), (_SPACED,), np.uint32)
        out_row = carray(stack((0,), _SPACED_BYTES), (_ROW,), out_like.dtype)
        base_row = carray(stack((0,), _SPACED_BYTES), (_SPACED,), np.float32)
        rows = carray(stack(sources, _SPACED_BYTES), (n_experts, _SPACED), np.float32)
        out_place, base_place = np.int64(out_row.ctypes.data), np.int64(base_row.ctypes.data)
        rows_place = np.int64(rows.ctypes.data)
        # 0 times what was written: 0, or NaN where it is not finite.
        zeros = carray(stack((0,), _SPACED_BYTES), (_PAIRS,), np.float32)
        for pair in range(_PAIRS):
            zeros[pair] = _ZERO
        start = -(target % 64 // out_like.itemsize)
        while start < n_elements:
            begin, end = max(start, 0), min(start + _ROW, n_elements)
            is_whole = end - begin == _ROW
            n_rows = (n_elements - start) // _ROW if is_whole else 1
            out_at = target + start * out_like.itemsize
            base_at = origin + start * base_like.itemsize
            for k in range(n_experts):
                at[k] = sources[k] + start * like.itemsize
            if not is_whole:
                skipped, n_here = begin - start, end - begin
                for i in range(_SPACED):
                    base_row[i] = _ZERO
                    for k in range(n_experts):
                        rows[k, i] = _ZERO
                _copy(
                    base_place + skipped * base_like.itemsize,
                    base_at + skipped * base_like.itemsize,
                    n_here * base_like.itemsize,
                )
                out_at, base_at = out_place, base_place
                for k in range(n_experts):
                    place = rows_place + k * _SPACED_BYTES
                    _copy(
                        place + skipped * like.itemsize,
                        at[k] + skipped * like.itemsize,
                        n_here * like.itemsize,
                    )
                    at[k] = place
            for row in range(n_rows):
                before = np.uint64(row * _PAIRS)
                if elects:
                    for pair in range(np.uint64(_PAIRS)):
                        for half in range(2):
                            theta_0 = element(base_at, before + pair, half, base_like)
                            elected = _ZERO
                            j = pair + np.uint64(half * _PAIRS)
                            for k in range(n_experts):
                                value = element(at[k], before + pair, half, like)
                                delta = _kept(value, theta_0, low[k], high[k], switches)
                                elected = fma(votes[k], delta, elected)
                                deltas[k, j] = delta
                            signs[j] = np.uint32(0) if elected >= _ZERO else _SIGN
                for pair in range(np.uint64(_PAIRS)):
                    even, odd = _ZERO, _ZERO
                    for half in range(2):
                        theta_0 = element(base_at, before + pair, half, base_like)
                        total, divisor = _ZERO, _ZERO
                        j = pair + np.uint64(half * _PAIRS)
                        for k in range(n_experts):
                            if elects:
                                delta = deltas[k, j]
                                turned = signs[j] ^ directions[k] if turns else signs[j]
                                agrees = flipped(delta, turned) > _ZERO
                            else:
                                value = element(at[k], before + pair, half, like)
                                delta = _kept(value, theta_0, low[k], high[k], switches)
                                agrees = passes_all or delta != _ZERO
                            total = fma(weights[k], delta, total) if agrees else total
                            if divides:
                                divisor = divisor + shares[k] if agrees else divisor
                        if divides:
                            total = total / (divisor if divisor != _ZERO else _ONE)
                        if half:
                            odd = theta_0 + total
                        else:
                            even = theta_0 + total
                    # Past the caches only where memory is all that is waited for.
                    if elects:
                        even, odd = put_pair(out_at, before + pair, even, odd, out_like)
                    else:
                        even, odd = put_pair(out_place, pair, even, odd, out_like)
                    zeros[pair] = fma(even, _ZERO, fma(odd, _ZERO, zeros[pair]))
                if is_whole and not elects:
                    if out_like.itemsize == 2:
                        stream(out_at + row * _BFLOAT16_BYTES, out_row, _BFLOAT16_BYTES)
                    else:
                        stream(out_at + row * _FLOAT32_BYTES, out_row, _FLOAT32_BYTES)
            if not is_whole:
                _copy(
                    target + begin * out_like.itemsize,
                    out_place + (begin - start) * out_like.itemsize,
                    (end - begin) * out_like.itemsize,
                )
            start += n_rows * _ROW
        if not elects:
            fence()
        total = _ZERO
        for pair in range(_PAIRS):
            total += zeros[pair]
        return total == _ZERO

    return kernel  # type: ignore[no-any-return]
