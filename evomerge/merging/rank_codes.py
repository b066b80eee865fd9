"""Row rank codes: the order of the magnitudes in every row of a task vector, two bytes each.

DELLA drops an element by its rank in its row; the ranks do not depend on any gene, so they are
sorted out once. A row is everything under one index of the first axis; a vector is one row.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

_MOST_CODES = 1 << 16
# Elements sorted at a time: 2 MB of keys.
_PASS = 1 << 18


def rank_codes(delta: Tensor) -> Tensor:
    """Return each element's rank among the magnitudes of its row, 0 the smallest.

    Equal magnitudes are placed in the order they are stored. The rank is the element's place; in
    rows of more than 65,536 elements (stacked experts) it counts in that many steps, which are
    finer than the random numbers that its probability is compared with.

    Args:
        delta: float32.

    Returns:
        Same shape, 0 to `last_code`; uint16, on a GPU int32, as torch sorts out little else there.
    """
    if not delta.numel():
        return torch.zeros(delta.shape, dtype=torch.uint16)
    rows = delta.reshape(-1, row_length(tuple(delta.shape)))
    codes = _sorted_by_numpy(rows) if delta.device.type == "cpu" else _sorted_by_torch(rows)
    return codes.reshape(delta.shape)


def last_code(n: int) -> int:
    """Return the code of the largest magnitude in a row of `n` elements."""
    return min(n, _MOST_CODES) - 1


def row_length(shape: tuple[int, ...]) -> int:
    """Return how many elements a row has: all under one index of the first axis, or a vector."""
    return math.prod(shape[1:]) if len(shape) > 1 else math.prod(shape)


@lru_cache(maxsize=1)  # of a long row it is large
def _codes_of_places(n: int) -> np.ndarray[tuple[int], np.dtype[np.uint16]]:
    """Return (n,) the code of each place in a row of `n` elements."""
    places = np.arange(n, dtype=np.int64)
    if n > _MOST_CODES:
        places *= 2 * last_code(n)
        places += n - 1
        places //= 2 * (n - 1)
    return places.astype(np.uint16)


def _sorted_by_numpy(rows: Tensor) -> Tensor:
    n = rows.shape[1]
    codes = np.empty(rows.shape, dtype=np.uint16)
    columns = np.arange(n, dtype=np.uint32)
    column_bits = (n - 1).bit_length()
    step = max(_PASS // n, 1)
    for start in range(0, len(rows), step):
        # The magnitude's bits above the column: one vectorised sort is a stable argsort, and ten
        # times as fast as torch's.
        keys = rows[start : start + step].abs().numpy().view(np.int32).astype(np.int64)
        keys <<= column_bits
        keys |= columns
        keys.sort(axis=1)
        keys &= (1 << column_bits) - 1
        np.put_along_axis(codes[start : start + step], keys, _codes_of_places(n)[None], 1)
    return torch.from_numpy(codes)


def _sorted_by_torch(rows: Tensor) -> Tensor:
    order = rows.abs().argsort(dim=1, stable=True)
    of_places = torch.from_numpy(_codes_of_places(rows.shape[1]).astype(np.int32)).to(rows.device)
    codes = torch.empty(rows.shape, dtype=torch.int32, device=rows.device)
    return codes.scatter_(1, order, of_places.expand_as(rows))
