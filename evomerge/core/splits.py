"""Which examples are searched on, which choose the winner, which measure it: by content alone.

An example's split follows from the digest of what it holds and from nothing else, so it is the
same in every run, on every machine and in every file; equal examples always share a split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from evomerge.core.arrays import IntArray


def split_of(digest: str, shares: Mapping[str, float]) -> str:
    """Return the split of one example.

    Args:
        digest: Of its content.
        shares: Split -> share of the examples, in a fixed order, with sum 1.
    """
    # Hashed once more: the digits an evaluator gives need not be evenly spread.
    drawn = hashlib.blake2b(digest.encode(), digest_size=8).digest()
    place = int.from_bytes(drawn, "big") / 2**64
    end = 0.0
    for name, share in shares.items():
        end += share
        if place < end:
            return name
    return [name for name, share in shares.items() if share > 0.0][-1]  # rounding of the sum


def split_positions(digests: Sequence[str], shares: Mapping[str, float]) -> dict[str, IntArray]:
    """Return split -> its positions among N examples, rising; together they are all of them.

    Args:
        digests: (N,) content digests.
        shares: See `split_of`.
    """
    found = np.array([split_of(digest, shares) for digest in digests])
    return {name: np.flatnonzero(found == name) for name in shares}
