"""Philox4x32-10 in torch integer operations: random numbers that are a function of an index.

Element i of a stream is word i % 4 of the Philox block with counter i // 4, so any slice can
be computed alone, and CPU and CUDA give the same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10

# Counters per pass; the int64 temporaries of one pass stay inside a CPU cache.
_CPU_CHUNK, _GPU_CHUNK = 1 << 15, 1 << 22


def philox_blocks(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> Tensor:
    """Return the four output words of each counter.

    Args:
        counter: Four (n,) int64 tensors of 32-bit words, lowest first.
        key: Two 32-bit words, lowest first.

    Returns:
        (n, 4) int64, each in [0, 2**32).

    Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (Random123).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # int64 products wrap modulo 2**64, which leaves all 64 bits of the product in place;
        # the mask undoes the sign extension of the shift.
        product0 = c0 * _MULTIPLIERS[0]
        product1 = c2 * _MULTIPLIERS[1]
        c0 = ((product1 >> 32) & _WORD) ^ c1 ^ k0
        c2 = ((product0 >> 32) & _WORD) ^ c3 ^ k1
        c1 = product1 & _WORD
        c3 = product0 & _WORD
        k0 = (k0 + _KEY_STEPS[0]) & _WORD
        k1 = (k1 + _KEY_STEPS[1]) & _WORD
    return torch.stack((c0, c1, c2, c3), dim=-1)


def philox_uniform(
    key: int, n: int, *, start: int = 0, device: torch.device | str | None = None
) -> Tensor:
    """Return elements [start, start + n) of the uniform stream called `key`.

    Args:
        key: 64-bit key (taken modulo 2**64).
        n: Number of elements.
        start: Index of the first one; the same element has the same value in any slice.
        device: Where to compute; the bits do not depend on it.

    Returns:
        (n,) float32 in [0, 1), multiples of 2**-24.

    Raises:
        ValueError: `n` or `start` is negative.
    """
    if n < 0 or start < 0:
        raise ValueError(f"n and start must not be negative, are {n} and {start}")
    out = torch.empty(n, dtype=torch.float32, device=device)
    words = (key & _WORD, (key >> 32) & _WORD)
    chunk = _CPU_CHUNK if out.device.type == "cpu" else _GPU_CHUNK
    stop = start + n
    for first in range(start // 4, -(-stop // 4), chunk):
        last = min(first + chunk, -(-stop // 4))
        index = torch.arange(first, last, dtype=torch.int64, device=out.device)
        zero = torch.zeros_like(index)
        blocks = philox_blocks((index & _WORD, index >> 32, zero, zero), words).reshape(-1)
        low, high = max(start, 4 * first), min(stop, 4 * last)
        bits = blocks[low - 4 * first : high - 4 * first] >> 8
        out[low - start : high - start] = bits.to(torch.float32).mul_(2.0**-24)
    return out
