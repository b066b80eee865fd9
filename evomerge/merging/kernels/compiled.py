"""The compiled kernels: every source element is read once, every result written once.

Arithmetic is float32 with fused multiply-adds in a fixed order and one rounding at the end, bit for
bit that of the plain torch versions in `fused` and `kept`. A loop over experts inside a loop
over elements is unrolled by the compiler, because the number of experts is part of a tuple's type.

Every kernel returns whether all it wrote is finite, looked up while it is in the cache.

Shape letters: E experts, n elements, P candidates.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
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
)
from evomerge.merging.kernels.jit import inline, jit
from evomerge.merging.philox import BLOCKS, ROUNDS, RUN

_ZERO, _ONE = np.float32(0.0), np.float32(1.0)
_MULTIPLIER_0, _MULTIPLIER_1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_STEP_0, _STEP_1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
_WORDS = 4 * BLOCKS
# Bytes from one expert's random words to the next's: a run, a wrapped-around word, and padding.
_STRIDE = 4 * _WORDS + 8
_UNIT, _HALF_UNIT = np.float32(2.0**-16), np.float32(2.0**-17)


@jit
def _zero(out: Any) -> Any:
    """Return the magnitude of a zero stored in `out`, which is overwritten later."""
    store(out, 0, _ZERO)
    return magnitude(out[0])


@jit
def weighted_sum(out: Any, sources: Any, coefficients: Any) -> Any:
    """Out = sum_k coefficients[k] * sources[k]."""
    largest = _zero(out)
    for i in range(np.uint64(out.size)):
        total = _ZERO
        for k in range(len(sources)):
            total = fma(coefficients[k], load(sources[k][i]), total)
        store(out, i, total)
        largest = larger(largest, magnitude(out[i]))
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


@jit
def _random_words(words: Any, first_block: Any, key_0: Any, key_1: Any) -> None:
    """Fill (4, BLOCKS) uint32 with the Philox words of consecutive counters."""
    for i in range(np.uint64(BLOCKS)):
        counter = np.uint64(first_block) + i
        c0, c1 = counter & _LOW, counter >> _HALF
        c2 = c3 = np.uint64(0)
        k0, k1 = key_0, key_1
        for _ in range(ROUNDS):
            # What lies above the low 32 bits of a word never reaches the result.
            product_0, product_1 = (c0 & _LOW) * _MULTIPLIER_0, (c2 & _LOW) * _MULTIPLIER_1
            c0, c1 = (product_1 >> _HALF) ^ c1 ^ k0, product_1
            c2, c3 = (product_0 >> _HALF) ^ c3 ^ k1, product_0
            k0, k1 = k0 + _STEP_0, k1 + _STEP_1
        words[0, i] = np.uint32(c0)
        words[1, i] = np.uint32(c1)
        words[2, i] = np.uint32(c2)
        words[3, i] = np.uint32(c3)


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
    """Return one element of a task vector, and whether `kept.Keep` lets it stay."""
    are_deltas, has_low, has_high, is_random, is_ranked, inverts = switches
    delta = load(stored)
    if not are_deltas:
        delta = delta - theta_0
    keep, chance = True, _ONE
    if has_low:
        keep = abs(delta) >= low
    if has_high:
        keep = keep & (abs(delta) <= high)
    if is_ranked:
        lowest, step = chances
        chance = np.float32(place) * step + lowest
        keep = keep & (fma(np.float32(drawn), _UNIT, _HALF_UNIT) < chance)
    elif is_random:
        keep = keep & (drawn <= last)
    if inverts:
        delta = delta / chance
    return delta, keep


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
        is_random: Elements are dropped at random: `keys` is read, and `last` unless ranked.
        is_ranked: The probability to stay is `lowest + step * places`.
        inverts: What stays is divided by that probability.
        has_low: Magnitudes below `low` are dropped.
        has_high: Magnitudes above `high` are dropped.
        are_deltas: `sources` hold task vectors instead of experts.
        vote: "elect", "touched" or "none".
        turns: Some of `directions` are negative.
        divides: Divide by the shares of the experts that agree.
    """
    elects, passes_all = vote == "elect", vote == "none"
    switches = (are_deltas, has_low, has_high, is_random, is_ranked, inverts)

    @jit
    def kernel(
        out: Any,
        base: Any,
        sources: Any,
        low: Any,
        high: Any,
        last: Any,
        keys: Any,
        places: Any,
        chances: Any,
        votes: Any,
        directions: Any,
        weights: Any,
        shares: Any,
        first: Any,
    ) -> Any:
        n_experts = len(sources)
        words = np.zeros((n_experts, _STRIDE // 4), np.uint32)
        largest = _zero(out)
        for start in range(0, out.size, RUN // 2):
            half = start // (RUN // 2) % 2
            if is_random and half == 0:
                for k in range(n_experts):
                    block = (first + start) // 16
                    planes = words[k, :_WORDS].reshape((4, BLOCKS))
                    _random_words(planes, block, keys[k, 0], keys[k, 1])
                    words[k, _WORDS] = words[k, 0]
            # `philox.random_halves` of this half of the run, expert k's from k * _STRIDE / 2 on.
            drawn = words.reshape(words.size).view(np.uint8)[half : half - 4].view(np.uint16)
            for j in range(np.uint64(min(RUN // 2, out.size - start))):
                i = np.uint64(start) + j
                theta_0 = load(base[i])
                elected = _ZERO
                if elects:
                    for k in range(n_experts):
                        delta, keep = _kept(
                            sources[k][i],
                            theta_0,
                            low[k],
                            high[k],
                            drawn[np.uint64(k * _STRIDE // 2) + j],
                            last[k],
                            places[k][i],
                            chances,
                            switches,
                        )
                        if keep:
                            elected = fma(votes[k], delta, elected)
                sign = _ONE if elected >= _ZERO else -_ONE
                total, divisor = _ZERO, _ZERO
                for k in range(n_experts):
                    delta, keep = _kept(
                        sources[k][i],
                        theta_0,
                        low[k],
                        high[k],
                        drawn[np.uint64(k * _STRIDE // 2) + j],
                        last[k],
                        places[k][i],
                        chances,
                        switches,
                    )
                    if elects:
                        turned = sign * directions[k] if turns else sign
                        keep = keep & (delta * turned > _ZERO)
                    elif not passes_all:
                        keep = keep & (delta != _ZERO)
                    if keep:
                        total = fma(weights[k], delta, total)
                        if divides:
                            divisor += shares[k]
                if divides:
                    total = total / (divisor if divisor != _ZERO else _ONE)
                store(out, i, theta_0 + total)
                largest = larger(largest, magnitude(out[i]))
        return is_finite(largest)

    return kernel  # type: ignore[no-any-return]
