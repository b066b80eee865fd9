"""The compiled kernel for adding task vectors of which elements are dropped at random.

There is no election: 256 elements at a time go past the caches in whole lines.

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
from evomerge.merging.kernels.masks import (
    WORD_BYTES,
    WORDS,
    chance_of,
    drawn_at,
    is_below,
    random_words,
    within,
)
from evomerge.merging.philox import RUN

_ZERO, _ONE = np.float32(0.0), np.float32(1.0)
_CODE = np.empty(0, np.uint16)

# Elements of a cache line at most, and more of a row on the stack than it holds: addresses whose
# low bits are the same get into each other's way.
_LINE = 32
_STEP = 256
_ROW = _STEP + _LINE
_ROW_BYTES, _STEP_2, _STEP_4 = 4 * _ROW, 2 * _STEP, 4 * _STEP


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
        chance = chance_of(place, chances)
        keep = keep & is_below(drawn, chance)
    else:
        keep = keep & (drawn <= last)
    if inverts:
        delta = delta / chance
    return delta if keep else _ZERO


@lru_cache
def dropped_sum(
    *,
    is_ranked: bool,
    inverts: bool,
    has_low: bool,
    has_high: bool,
    are_deltas: bool,
    vote: str,
    divides: bool,
) -> Callable[..., Any]:
    """Return the kernel of `kept.merge_kept` with random masks and no election, for some switches.

    Args:
        is_ranked: The probability to stay is `lowest + step * places`; else `last` is read.
        inverts: What stays is divided by that probability.
        has_low: Magnitudes below `low` are dropped.
        has_high: Magnitudes above `high` are dropped.
        are_deltas: `sources` hold task vectors instead of experts.
        vote: "touched", or "none": what is dropped counts as agreeing, too.
        divides: Divide by the shares of the experts that agree.
    """
    passes_all = vote == "none"
    switches = (are_deltas, has_low, has_high, is_ranked, inverts)

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
        _votes: Any,
        _directions: Any,
        weights: Any,
        shares: Any,
    ) -> Any:
        out = carray(pointer(target), (n_elements,), out_like.dtype)
        base = carray(pointer(origin), (n_elements,), base_like.dtype)
        n_experts = len(sources)
        words = carray(stack(sources, WORD_BYTES), (n_experts, WORDS), np.uint32)
        store(out, 0, _ZERO)
        largest = magnitude(out[0])
        # Results that wait for the rest of their cache line, `carried` of them from before.
        results = carray(stack((0,), _ROW_BYTES), (_ROW,), out_like.dtype)
        carried = np.uint64(target % 64 // out_like.itemsize)
        for start in range(0, out.size, _STEP):
            place = start % RUN
            if place == 0:
                random_words(words, (first + start) // RUN, keys)
            # `philox.random_halves` of expert k begin k * WORD_BYTES later.
            drawn = drawn_at(place)
            n_here = np.uint64(min(_STEP, out.size - start))
            for j in range(n_here):
                i = np.uint64(start) + j
                theta_0 = load(base[i])
                total, divisor = _ZERO, _ZERO
                for k in range(n_experts):
                    delta = _kept(
                        stored_at(sources[k], i, like),
                        theta_0,
                        low[k],
                        high[k],
                        two_bytes(words, np.uint64(drawn + k * WORD_BYTES) + j + j),
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
                store(results, carried + j, theta_0 + total)
                largest = larger(largest, magnitude(results[carried + j]))
            is_last = start + _STEP >= out.size
            line = target + (start - np.int64(carried)) * out_like.itemsize
            if start == 0 or is_last:
                end = carried + n_here if is_last else np.uint64(_STEP)
                for j in range(carried if start == 0 else np.uint64(0), end):
                    out[np.uint64(start) + j - carried] = results[j]
            elif out_like.itemsize == 2:
                stream(line, results, _STEP_2)
            else:
                stream(line, results, _STEP_4)
            for j in range(np.uint64(_LINE)):
                results[j] = results[np.uint64(_STEP) + j]
        fence()
        return is_finite(largest)

    return kernel  # type: ignore[no-any-return]
