"""Names of noise: pseudo-sources of a recipe that are made from a seed, not read from a file.

A source called ``noise:<16 hex digits>`` stands for one standard normal number per merged element,
a function of the seed, the tensor's name and the element alone. A recipe that names it with weight
sigma adds N(0, sigma^2) to every element, and says exactly which numbers these were.
"""

from __future__ import annotations

import re

_NAME = re.compile(r"noise:([0-9a-f]{16})")


def noise_name(seed: int) -> str:
    """Return the source id of a 64-bit seed."""
    if not 0 <= seed < 2**64:
        raise ValueError(f"a seed has 64 bits and no sign, this is {seed}")
    return f"noise:{seed:016x}"


def noise_seed(source: str) -> int | None:
    """Return the seed of a source id; None when it names no noise."""
    found = _NAME.fullmatch(source)
    return None if found is None else int(found[1], 16)
