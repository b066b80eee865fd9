"""The compiled kernel for merging task vectors of which elements are dropped at random.

Where signs are elected it goes over 128 elements at a time, in two steps: the first writes what is
kept of each task vector and the elected signs to the stack, the second adds up what agrees. In one
step the processor's queues fill with instructions that wait for each other; with longer stretches
it is either waiting for memory or calculating, and not both at once. Plain sums, 256 elements at a
time, go past the caches in whole lines; with an election that gains nothing.

Shape letters: E experts, n elements.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numba import carray

from evomerge.merging.kernels.intrinsics import (
    fence,
    flipped,
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
    two_bytes,
)
from evomerge.merging.kernels.jit import inline, jit
from evomerge.merging.kernels.random_words import WIDE, philox_words
from evomerge.merging.philox import BLOCKS, RUN

_ZERO, _ONE = np.float32(0.0), np.float32(1.0)
_SIGN = np.uint32(0x80000000)
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
_CODE = np.empty(0, np.uint16)
_UNIT, _HALF_UNIT = np.float32(2.0**-16), np.float32(2.0**-17)

# Elements of a cache line at most, and more of a row on the stack than it holds: addresses whose
# low bits are the same get into each other's way.
_LINE = 32
# Random words of a run, the first one again, and padding.
_WORDS = 4 * BLOCKS + 16
_WORD_BYTES = 4 * _WORDS


@jit
def _random_words(words: Any, run: Any, keys: Any) -> None:
    """Write the random words of a run.

    Args:
        words: (E, _WORDS) uint32.
        run: Number of the run.
        keys: (E, 2) uint64.
    """
    first = np.uint64(run * BLOCKS)
    low, high = first & _LOW, first >> _HALF
    for k in range(len(keys)):
        for i in range(np.uint64(0), np.uint64(BLOCKS), np.uint64(WIDE)):
            philox_words(words[k], i, low + i, high, keys[k, 0], keys[k, 1])
        words[k, np.uint64(4 * BLOCKS)] = words[k, np.uint64(0)]


@inline
def within(delta: Any, low: Any, high: Any, has_low: Any, has_high: Any) -> Any:
    """Return whether a magnitude lies between the bounds there are."""
    keep = True
    if has_low:
        keep = abs(delta) >= low
    if has_high:
        keep = keep & (abs(delta) <= high)
    return keep


@inline
def _kept(
    stored: Any,
    theta_0: Any,
    low: Any,
    high: Any,
    drawn: Any,
    last: Any,
    place: Any,
    chances: Any,
    switches: Any,
) -> Any:
    """Return one element of a task vector, zero where `kept.Keep` drops it."""
    are_deltas, has_low, has_high, is_ranked, inverts = switches
    delta = load(stored)
    if not are_deltas:
        delta = delta - theta_0
    keep, chance = within(delta, low, high, has_low, has_high), _ONE
    if is_ranked:
        lowest, step = chances
        chance = np.float32(place) * step + lowest
        keep = keep & (fma(np.float32(drawn), _UNIT, _HALF_UNIT) < chance)
    else:
        keep = keep & (drawn <= last)
    if inverts:
        delta = delta / chance
    return delta if keep else _ZERO


@lru_cache
def kept_sum(
    *,
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
        is_ranked: The probability to stay is `lowest + step * places`; else `last` is read.
        inverts: What stays is divided by that probability.
        has_low: Magnitudes below `low` are dropped.
        has_high: Magnitudes above `high` are dropped.
        are_deltas: `sources` hold task vectors instead of experts.
        vote: "elect", "touched" or "none".
        turns: Some of `directions` are not 0.
        divides: Divide by the shares of the experts that agree.
    """
    elects, passes_all = vote == "elect", vote == "none"
    switches = (are_deltas, has_low, has_high, is_ranked, inverts)
    step = 128 if elects else 256
    row = step + _LINE
    row_bytes, step_2, step_4 = 4 * row, 2 * step, 4 * step

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
        out = carray(pointer(target), (n_elements,), out_like.dtype)
        base = carray(pointer(origin), (n_elements,), base_like.dtype)
        n_experts = len(sources)
        deltas = carray(stack(sources, row_bytes), (n_experts, row), np.float32)
        signs = carray(stack((0,), row_bytes), (row,), np.uint32)
        words = carray(stack(sources, _WORD_BYTES), (n_experts, _WORDS), np.uint32)
        store(out, 0, _ZERO)
        largest = magnitude(out[0])
        # Results that wait for the rest of their cache line, `carried` of them from before.
        results = carray(stack((0,), row_bytes), (row,), out_like.dtype)
        carried = np.uint64(target % 64 // out_like.itemsize)
        for start in range(0, out.size, step):
            place = start % RUN
            if place == 0:
                _random_words(words, (first + start) // RUN, keys)
            # `philox.random_halves` of expert k begin k * _WORD_BYTES later.
            drawn = place % (RUN // 2) * 2 + place // (RUN // 2)
            n_here = np.uint64(min(step, out.size - start))
            if elects:
                for j in range(n_here):
                    i = np.uint64(start) + j
                    theta_0 = load(base[i])
                    elected = _ZERO
                    for k in range(n_experts):
                        delta = _kept(
                            stored_at(sources[k], i, like),
                            theta_0,
                            low[k],
                            high[k],
                            two_bytes(words, np.uint64(drawn + k * _WORD_BYTES) + j + j),
                            last[k],
                            stored_at(places[k], i, _CODE),
                            chances,
                            switches,
                        )
                        elected = fma(votes[k], delta, elected)
                        deltas[k, j] = delta
                    signs[j] = np.uint32(0) if elected >= _ZERO else _SIGN
            for j in range(n_here):
                i = np.uint64(start) + j
                theta_0 = load(base[i])
                total, divisor = _ZERO, _ZERO
                for k in range(n_experts):
                    if elects:
                        delta = deltas[k, j]
                        turned = signs[j] ^ directions[k] if turns else signs[j]
                        agrees = flipped(delta, turned) > _ZERO
                    else:
                        delta = _kept(
                            stored_at(sources[k], i, like),
                            theta_0,
                            low[k],
                            high[k],
                            two_bytes(words, np.uint64(drawn + k * _WORD_BYTES) + j + j),
                            last[k],
                            stored_at(places[k], i, _CODE),
                            chances,
                            switches,
                        )
                        agrees = passes_all or delta != _ZERO
                    total = fma(weights[k], delta, total) if agrees else total
                    if divides:
                        divisor = divisor + shares[k] if agrees else divisor
                if divides:
                    total = total / (divisor if divisor != _ZERO else _ONE)
                if elects:
                    store(out, i, theta_0 + total)
                    largest = larger(largest, magnitude(out[i]))
                else:
                    store(results, carried + j, theta_0 + total)
                    largest = larger(largest, magnitude(results[carried + j]))
            if not elects:
                is_last = start + step >= out.size
                line = target + (start - np.int64(carried)) * out_like.itemsize
                if start == 0 or is_last:
                    end = carried + n_here if is_last else np.uint64(step)
                    for j in range(carried if start == 0 else np.uint64(0), end):
                        out[np.uint64(start) + j - carried] = results[j]
                elif out_like.itemsize == 2:
                    stream(line, results, step_2)
                else:
                    stream(line, results, step_4)
                for j in range(np.uint64(_LINE)):
                    results[j] = results[np.uint64(step) + j]
        if not elects:
            fence()
        return is_finite(largest)

    return kernel  # type: ignore[no-any-return]
