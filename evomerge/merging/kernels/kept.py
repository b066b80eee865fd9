"""The compiled kernel for merging task vectors of which only some elements are kept.

It goes over rows in two steps where signs are elected: the first writes what is kept of each task
vector and the elected signs to the stack, the second adds up what agrees. In one step the
processor's queues fill with instructions that wait for each other; with longer rows it is either
waiting for memory or calculating, and not both at once. With whole rows only, elements are taken
in pairs; the last, shorter one is merged on the stack. Rows with random masks begin where random
words do, others at a cache line of the result, as in `compiled.weighted_sum`.

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
from evomerge.merging.kernels.masks import (
    WORD_BYTES,
    chance_of,
    drawn_at,
    is_below,
    random_words,
    within,
)
from evomerge.merging.kernels.pairs import element, put_pair, upper_bits
from evomerge.merging.philox import RUN

_ZERO, _ONE = np.float32(0.0), np.float32(1.0)
_SIGN = np.uint32(0x80000000)
_HALF = np.uint32(16)
# More of a row on the stack than it holds: addresses whose low bits are the same get into each
# other's way.
_SPACE = 16


@jit
def _copy(target: Any, source: Any, n_bytes: Any) -> None:
    """Copy bytes from one address to another."""
    there = carray(pointer(target), (n_bytes,), np.uint8)
    here = carray(pointer(source), (n_bytes,), np.uint8)
    for i in range(n_bytes):
        there[i] = here[i]


@inline
def _kept(
    value: Any,
    theta_0: Any,
    low: Any,
    high: Any,
    drawn: Any,
    last: Any,
    place: Any,
    chances: Any,
    switches: Any,
) -> Any:
    """Return one element of a task vector, zero where `kept.Keep` drops it.

    Random number and place are the upper halves of words.
    """
    are_deltas, has_low, has_high, is_random, is_ranked, inverts = switches
    delta = value if are_deltas else value - theta_0
    keep, chance = within(delta, low, high, has_low, has_high), _ONE
    if is_ranked:
        chance = chance_of(place >> _HALF, chances)
        keep = keep & is_below(drawn >> _HALF, chance)
    elif is_random:
        keep = keep & (drawn <= last)
    if inverts:
        delta = delta / chance
    return delta if keep else _ZERO


@lru_cache
def kept_sum(
    *,
    is_random: bool,
    is_ranked: bool,
    inverts: bool,
    has_low: bool,
    has_high: bool,
    are_deltas: bool,
    vote: str,
    turns: bool,
    divides: bool,
) -> Callable[..., Any]:
    """Return the kernel of `kept.merge_kept` for one combination of switches.

    Args:
        is_random: Elements are dropped at random; see `dropped.dropped_sum` for "none", "touched".
        is_ranked: The probability to stay is `lowest + step * places`; else `last` is read, a word
            whose upper half is the last 16-bit number that stays and whose lower half is full.
        inverts: What stays is divided by that probability.
        has_low: Magnitudes below `low` are dropped.
        has_high: Magnitudes above `high` are dropped.
        are_deltas: `sources` hold task vectors instead of experts.
        vote: "elect", "touched" or "none".
        turns: Some of `directions` are not 0.
        divides: Divide by the shares of the experts that agree.
    """
    elects, passes_all = vote == "elect", vote == "none"
    switches = (are_deltas, has_low, has_high, is_random, is_ranked, inverts)
    row_size = 128 if is_random else 256
    n_pairs, spaced = row_size // 2, row_size + _SPACE
    spaced_bytes = 4 * spaced
    word_bytes = WORD_BYTES if is_random else 4
    n_words = word_bytes // 4
    row_2, row_4 = 2 * row_size, 4 * row_size

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
        last: Any,
        keys: Any,
        places: Any,
        chances: Any,
        first: Any,
        votes: Any,
        directions: Any,
        weights: Any,
        shares: Any,
    ) -> Any:
        n_experts = len(sources)
        at = carray(stack(sources, 8), (n_experts,), np.int64)
        deltas = carray(stack(sources, spaced_bytes), (n_experts, spaced), np.float32)
        signs = carray(stack((0,), spaced_bytes), (spaced,), np.uint32)
        out_row = carray(stack((0,), spaced_bytes), (row_size,), out_like.dtype)
        base_row = carray(stack((0,), spaced_bytes), (spaced,), np.float32)
        rows = carray(stack(sources, spaced_bytes), (n_experts, spaced), np.float32)
        out_place, base_place = np.int64(out_row.ctypes.data), np.int64(base_row.ctypes.data)
        rows_place = np.int64(rows.ctypes.data)
        # 0 times what was written: 0, or NaN where it is not finite.
        zeros = carray(stack((0,), spaced_bytes), (n_pairs,), np.float32)
        for pair in range(n_pairs):
            zeros[pair] = _ZERO
        words = carray(stack(sources, word_bytes), (n_experts, n_words), np.uint32)
        words_at = np.int64(words.ctypes.data)
        codes = carray(stack(sources, spaced_bytes), (n_experts, spaced), np.float32)
        codes_place = np.int64(codes.ctypes.data)
        codes_at = carray(stack(sources, 8), (n_experts,), np.int64)
        start = np.int64(0) if is_random else -(target % 64 // out_like.itemsize)
        while start < n_elements:
            begin, end = max(start, 0), min(start + row_size, n_elements)
            is_whole = end - begin == row_size
            n_rows = (n_elements - start) // row_size if is_whole else 1
            out_at = target + start * out_like.itemsize
            base_at = origin + start * base_like.itemsize
            for k in range(n_experts):
                at[k] = sources[k] + start * like.itemsize
                codes_at[k] = places[k] + start * 2
            if not is_whole:
                skipped, n_here = begin - start, end - begin
                for i in range(spaced):
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
                    place = rows_place + k * spaced_bytes
                    _copy(
                        place + skipped * like.itemsize,
                        at[k] + skipped * like.itemsize,
                        n_here * like.itemsize,
                    )
                    at[k] = place
                    if is_ranked:
                        place = codes_place + k * spaced_bytes
                        _copy(place, codes_at[k], 2 * n_here)
                        codes_at[k] = place
            for row in range(n_rows):
                before = np.uint64(row * n_pairs)
                drawn_here = words_at
                if is_random:
                    now = start + row * row_size
                    if now % RUN == 0:
                        random_words(words, (first + now) // RUN, keys)
                    drawn_here = words_at + drawn_at(now % RUN)
                if elects:
                    for pair in range(np.uint64(n_pairs)):
                        for half in range(2):
                            theta_0 = element(base_at, before + pair, half, base_like)
                            elected = _ZERO
                            j = pair + np.uint64(half * n_pairs)
                            for k in range(n_experts):
                                delta = _kept(
                                    element(at[k], before + pair, half, like),
                                    theta_0,
                                    low[k],
                                    high[k],
                                    upper_bits(drawn_here + k * WORD_BYTES, pair, half),
                                    last[k],
                                    upper_bits(codes_at[k], before + pair, half),
                                    chances,
                                    switches,
                                )
                                elected = fma(votes[k], delta, elected)
                                deltas[k, j] = delta
                            signs[j] = np.uint32(0) if elected >= _ZERO else _SIGN
                for pair in range(np.uint64(n_pairs)):
                    even, odd = _ZERO, _ZERO
                    for half in range(2):
                        theta_0 = element(base_at, before + pair, half, base_like)
                        total, divisor = _ZERO, _ZERO
                        j = pair + np.uint64(half * n_pairs)
                        for k in range(n_experts):
                            if elects:
                                delta = deltas[k, j]
                                turned = signs[j] ^ directions[k] if turns else signs[j]
                                agrees = not flipped(delta, turned) <= _ZERO  # NaN does
                            else:
                                delta = _kept(
                                    element(at[k], before + pair, half, like),
                                    theta_0,
                                    low[k],
                                    high[k],
                                    upper_bits(drawn_here + k * WORD_BYTES, pair, half),
                                    last[k],
                                    upper_bits(codes_at[k], before + pair, half),
                                    chances,
                                    switches,
                                )
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
                        stream(out_at + row * row_2, out_row, row_2)
                    else:
                        stream(out_at + row * row_4, out_row, row_4)
            if not is_whole:
                _copy(
                    target + begin * out_like.itemsize,
                    out_place + (begin - start) * out_like.itemsize,
                    (end - begin) * out_like.itemsize,
                )
            start += n_rows * row_size
        if not elects:
            fence()
        total = _ZERO
        for pair in range(n_pairs):
            total += zeros[pair]
        return total == _ZERO

    return kernel  # type: ignore[no-any-return]
