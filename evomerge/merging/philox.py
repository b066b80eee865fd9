"""Counter-based random numbers: a function of (key, element), on any device and for any slice.

Philox4x32-7: seven rounds, the fewest that pass every test of BigCrush (Salmon et al. 2011,
"Parallel random numbers: as easy as 1, 2, 3", table 2), are enough for masks and a fifth cheaper
than ten. Elements come in runs of `RUN`. A run's `BLOCKS` counters give four planes of 32-bit
words, 2,048 bytes in all, and each element has a 16-bit window of them: the first half of the run
the windows at even bytes, the second half those at odd bytes (the last one wraps around). So an
element has a byte of its own as its high byte, and its low byte is a neighbour's: exactly uniform,
half the cost of 16 bits each, and two masks depend on each other only where the high byte ties
with the threshold, once in 256.
"""

from __future__ import annotations

import torch
from torch import Tensor

RUN = 2048
BLOCKS = RUN // 16
ROUNDS = 7
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)

_WORD = 0xFFFFFFFF

# Runs per pass; the int64 temporaries of one pass stay inside a CPU cache.
_CPU_RUNS, _GPU_RUNS = 1 << 7, 1 << 14


def philox_blocks(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int], rounds: int = ROUNDS
) -> Tensor:
    """Return the four output words of each counter.

    Args:
        counter: Four (n,) int64 tensors of 32-bit words, lowest first.
        key: Two 32-bit words, lowest first.
        rounds: Rounds of mixing.

    Returns:
        (n, 4) int64, each in [0, 2**32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        # int64 products wrap modulo 2**64, which leaves all 64 bits of the product in place;
        # the mask undoes the sign extension of the shift.
        product0 = c0 * MULTIPLIERS[0]
        product1 = c2 * MULTIPLIERS[1]
        c0 = ((product1 >> 32) & _WORD) ^ c1 ^ k0
        c2 = ((product0 >> 32) & _WORD) ^ c3 ^ k1
        c1 = product1 & _WORD
        c3 = product0 & _WORD
        k0 = (k0 + KEY_STEPS[0]) & _WORD
        k1 = (k1 + KEY_STEPS[1]) & _WORD
    return torch.stack((c0, c1, c2, c3), dim=-1)


def key_words(key: int) -> tuple[int, int]:
    """Return the two 32-bit words of a 64-bit key (taken modulo 2**64), lowest first."""
    return key & _WORD, (key >> 32) & _WORD


def random_halves(
    key: int, n: int, *, start: int = 0, device: torch.device | str | None = None
) -> Tensor:
    """Return elements [start, start + n) of the stream called `key`, as 16-bit integers.

    Args:
        key: 64-bit key.
        n: Number of elements.
        start: Index of the first one; the same element has the same value in any slice.
        device: Where to compute; the bits do not depend on it.

    Returns:
        (n,) int32 in [0, 2**16).

    Raises:
        ValueError: `n` or `start` is negative.
    """
    if n < 0 or start < 0:
        raise ValueError(f"n and start must not be negative, are {n} and {start}")
    out = torch.empty(n, dtype=torch.int32, device=device)
    stop = start + n
    step = _CPU_RUNS if out.device.type == "cpu" else _GPU_RUNS
    for first in range(start // RUN, -(-stop // RUN), step):
        last = min(first + step, -(-stop // RUN))
        values = _runs(key_words(key), first, last, out.device).reshape(-1)
        low, high = max(start, first * RUN), min(stop, last * RUN)
        out[low - start : high - start] = values[low - first * RUN : high - first * RUN]
    return out


def _runs(key: tuple[int, int], first: int, last: int, device: torch.device) -> Tensor:
    """Return (last - first, RUN) int32, whole runs of elements."""
    index = torch.arange(first * BLOCKS, last * BLOCKS, dtype=torch.int64, device=device)
    zero = torch.zeros_like(index)
    words = philox_blocks((index & _WORD, index >> 32, zero, zero), key)
    planes = words.reshape(-1, BLOCKS, 4).transpose(1, 2).to(torch.int32, copy=True).contiguous()
    stream = planes.reshape(last - first, -1).view(torch.uint8).to(torch.int32)
    windows = stream + 256 * stream.roll(-1, dims=1)
    return torch.cat((windows[:, 0::2], windows[:, 1::2]), dim=1)


def philox_uniform(
    key: int, n: int, *, start: int = 0, device: torch.device | str | None = None
) -> Tensor:
    """Return `random_halves` as float32 in (0, 1): (half + 1/2) / 2**16.

    None is 0, so that a probability below 2**-17 keeps nothing, and 1 / probability stays finite.
    """
    halves = random_halves(key, n, start=start, device=device)
    return halves.to(torch.float32).add_(0.5).mul_(2.0**-16)
