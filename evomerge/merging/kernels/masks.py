"""Which elements of a task vector stay, for compiled kernels: random words, bounds and chances.

Shape letters: E experts.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from evomerge.merging.kernels.intrinsics import fma
from evomerge.merging.kernels.jit import inline, jit
from evomerge.merging.kernels.random_words import WIDE, philox_words
from evomerge.merging.philox import BLOCKS, RUN

# Random words of a run, the first one again, and padding.
WORDS = 4 * BLOCKS + 16
WORD_BYTES = 4 * WORDS

_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
_UNIT, _HALF_UNIT = np.float32(2.0**-16), np.float32(2.0**-17)


@jit
def random_words(words: Any, run: Any, keys: Any) -> None:
    """Write the random words of a run.

    Args:
        words: (E, WORDS) uint32.
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
def drawn_at(place: Any) -> Any:
    """Return at which byte of a run's words `philox.random_halves` of an element begin."""
    return place % (RUN // 2) * 2 + place // (RUN // 2)


@inline
def within(delta: Any, low: Any, high: Any, has_low: Any, has_high: Any) -> Any:
    """Return whether a magnitude lies between the bounds there are; NaN does, to be seen."""
    keep = True
    if has_low:
        keep = not abs(delta) < low
    if has_high:
        keep = keep & (not abs(delta) > high)
    return keep


@inline
def chance_of(place: Any, chances: Any) -> Any:
    """Return an element's probability of staying by its place in the order of magnitudes."""
    lowest, step = chances
    return np.float32(place) * step + lowest


@inline
def is_below(drawn: Any, chance: Any) -> Any:
    """Return whether a 16-bit random number lets an element with this probability stay."""
    return fma(np.float32(drawn), _UNIT, _HALF_UNIT) < chance
