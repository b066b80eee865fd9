"""The compiled kernels: every source element is read once, every result written once.

Arithmetic is float32 with fused multiply-adds in a fixed order and one rounding at the end, bit for
bit that of the plain torch versions in `weighted` and `kept`. A loop over experts inside a loop
over elements is unrolled by the compiler, because the number of experts is part of a tuple's type.

Every kernel returns whether all it wrote is finite, looked up while it is in the cache.

Shape letters: E experts, n elements, P candidates.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numba import njit

from evomerge.merging.kernels.intrinsics import fma, is_finite, load, store
from evomerge.merging.philox import BLOCKS, ROUNDS, RUN

_ZERO, _ONE = np.float32(0.0), np.float32(1.0)
_MULTIPLIER_0, _MULTIPLIER_1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_STEP_0, _STEP_1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
_WORDS = 4 * BLOCKS
_UNIT, _HALF_STEP = np.float32(2.0**-16), np.float32(0.5)

_jit: Callable[..., Any] = njit(nogil=True, cache=True, error_model="numpy")


@_jit
def all_finite(values: Any) -> Any:
    """Return whether every stored element is finite."""
    n_bad = 0
    for i in range(values.size):
        if not is_finite(values[i]):
            n_bad += 1
    return n_bad == 0


@_jit
def weighted_sum(out: Any, sources: Any, coefficients: Any) -> Any:
    """Out = sum_k coefficients[k] * sources[k]."""
    finite = True
    for start in range(0, out.size, RUN):
        stop = min(start + RUN, out.size)
        for i in range(np.uint64(start), np.uint64(stop)):
            total = _ZERO
            for k in range(len(sources)):
                total = fma(coefficients[k], load(sources[k][i]), total)
            store(out, i, total)
        finite &= all_finite(out[start:stop])
    return finite


@_jit
def population_sum(outs: Any, sources: Any, coefficients: Any) -> Any:
    """outs[p] = sum_k coefficients[p, k] * sources[k], a run of the sources at a time.

    Args:
        outs: (P, n).
        sources: (K,) tuple of (n,).
        coefficients: (P, K) float32.
    """
    finite = True
    n_elements, n_sources = outs.shape[1], len(sources)
    loaded = np.empty((n_sources, RUN), np.float32)
    for start in range(0, n_elements, RUN):
        n = min(RUN, n_elements - start)
        for k in range(n_sources):
            for j in range(np.uint64(n)):
                loaded[k, j] = load(sources[k][np.uint64(start) + j])
        for p in range(outs.shape[0]):
            out = outs[p, start : start + n]
            for j in range(np.uint64(n)):
                total = _ZERO
                for k in range(n_sources):
                    total = fma(coefficients[p, k], loaded[k, j], total)
                store(out, j, total)
            finite &= all_finite(out)
    return finite


@_jit
def _random_words(words: Any, first_block: Any, key_0: Any, key_1: Any) -> None:
    """Fill (4, BLOCKS) uint32 with the Philox words of consecutive counters."""
    for i in range(np.uint64(BLOCKS)):
        counter = np.uint64(first_block) + i
        c0, c1 = counter & _LOW, counter >> _HALF
        c2 = c3 = np.uint64(0)
        k0, k1 = key_0, key_1
        for _ in range(ROUNDS):
            product_0, product_1 = c0 * _MULTIPLIER_0, c2 * _MULTIPLIER_1
            c0 = (product_1 >> _HALF) ^ c1 ^ k0
            c2 = (product_0 >> _HALF) ^ c3 ^ k1
            c1, c3 = product_1 & _LOW, product_0 & _LOW
            k0, k1 = (k0 + _STEP_0) & _LOW, (k1 + _STEP_1) & _LOW
        words[0, i] = np.uint32(c0)
        words[1, i] = np.uint32(c1)
        words[2, i] = np.uint32(c2)
        words[3, i] = np.uint32(c3)


@_jit
def _random_halves(drawn: Any, buffer: Any, first_block: Any, key_0: Any, key_1: Any) -> None:
    """Fill (RUN,) uint16 with a run of `philox.random_halves`."""
    _random_words(buffer[:_WORDS].reshape((4, BLOCKS)), first_block, key_0, key_1)
    buffer[_WORDS] = buffer[0]
    stream = buffer.view(np.uint8)
    even, odd = stream[:RUN].view(np.uint16), stream[1 : RUN + 1].view(np.uint16)
    for j in range(RUN // 2):
        drawn[j] = even[j]
    for j in range(RUN // 2):
        drawn[RUN // 2 + j] = odd[j]


@lru_cache
def kept_sum(
    *,
    is_random: bool,
    is_ranked: bool,
    inverts: bool,
    has_low: bool,
    has_high: bool,
    has_factors: bool,
    are_deltas: bool,
    vote: str,
    divides: bool,
) -> Callable[..., Any]:
    """Return the kernel of `kept.merge_kept` for one combination of switches.

    Args:
        is_random: Elements are dropped at random: `keys` is read, and `last` unless ranked.
        is_ranked: The probability to stay is `lowest + spread * places / last_place`.
        inverts: What stays is divided by that probability.
        has_low: Magnitudes below `low` are dropped.
        has_high: Magnitudes above `high` are dropped.
        has_factors: What is kept is multiplied by `factors`.
        are_deltas: `sources` hold task vectors instead of experts.
        vote: "elect", "touched" or "none".
        divides: Divide by the shares of the experts that agree.
    """
    elects, passes_all = vote == "elect", vote == "none"

    @njit(nogil=True, error_model="numpy", inline="always")  # type: ignore[untyped-decorator]
    def kept(
        stored: Any,
        theta_0: Any,
        low: Any,
        high: Any,
        factor: Any,
        drawn: Any,
        last: Any,
        place: Any,
        chances: Any,
    ) -> Any:
        delta = load(stored)
        if not are_deltas:
            delta = delta - theta_0
        keep = True
        if has_low:
            keep = abs(delta) >= low
        if has_high:
            keep = keep & (abs(delta) <= high)
        if is_ranked:
            lowest, spread, last_place = chances
            chance = np.float32(place) / last_place * spread + lowest
            keep = keep & ((np.float32(drawn) + _HALF_STEP) * _UNIT < chance)
        elif is_random:
            keep = keep & (drawn <= last)
        delta = delta if keep else _ZERO
        if inverts:
            delta = delta / (chance if keep else _ONE)
        return delta * factor if has_factors else delta

    @_jit
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
        factors: Any,
        votes: Any,
        directions: Any,
        weights: Any,
        shares: Any,
        scale: Any,
        first: Any,
    ) -> Any:
        n_experts = len(sources)
        buffer = np.zeros(_WORDS + 1, np.uint32)
        drawn = np.zeros((n_experts, RUN), np.uint16)
        finite = True
        for start in range(0, out.size, RUN):
            if is_random:
                for k in range(n_experts):
                    block = (first + start) // 16
                    _random_halves(drawn[k], buffer, block, keys[k, 0], keys[k, 1])
            stop = min(start + RUN, out.size)
            for j in range(np.uint64(stop - start)):
                i = np.uint64(start) + j
                theta_0 = load(base[i])
                elected = _ZERO
                if elects:
                    for k in range(n_experts):
                        delta = kept(
                            sources[k][i],
                            theta_0,
                            low[k],
                            high[k],
                            factors[k],
                            drawn[k, j],
                            last[k],
                            places[k][i],
                            chances,
                        )
                        elected = fma(votes[k], delta, elected)
                sign = _ONE if elected >= _ZERO else -_ONE
                total, divisor = _ZERO, _ZERO
                for k in range(n_experts):
                    delta = kept(
                        sources[k][i],
                        theta_0,
                        low[k],
                        high[k],
                        factors[k],
                        drawn[k, j],
                        last[k],
                        places[k][i],
                        chances,
                    )
                    if elects:
                        agrees = delta * (sign * directions[k]) > _ZERO
                    elif passes_all:
                        agrees = True
                    else:
                        agrees = delta != _ZERO
                    total = fma(weights[k], delta if agrees else _ZERO, total)
                    if divides:
                        divisor += shares[k] if agrees else _ZERO
                if divides:
                    total = total / (divisor if divisor != _ZERO else _ONE)
                store(out, i, theta_0 + total * scale)
            finite &= all_finite(out[start:stop])
        return finite

    return kernel  # type: ignore[no-any-return]
