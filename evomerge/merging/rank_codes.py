"""Row rank codes: the order of the magnitudes in every row of a task vector, two bytes each.

DELLA drops an element by its rank in its row; the ranks do not depend on any gene, so they are
sorted out once. See `della.row_ranks` for what a row and a rank are.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

_COLUMN_BITS = 16
LONGEST_ROW = 1 << _COLUMN_BITS
# Elements sorted at a time: 32 MB of keys.
_PASS = 1 << 22


def has_rank_codes(shape: tuple[int, ...]) -> bool:
    """Return whether a tensor of this shape has rows that two bytes can number, and has any."""
    return math.prod(shape) > 0 and row_length(shape) <= LONGEST_ROW


def rank_codes(delta: Tensor) -> Tensor:
    """Return each element's place among the magnitudes of its row, 0 the smallest.

    Equal magnitudes are placed in the order they are stored. An element's place over the last
    place of its row is its rank.

    Args:
        delta: float32 on the CPU, of a shape with `has_rank_codes`.

    Returns:
        Same shape, uint16.
    """
    n = row_length(tuple(delta.shape))
    rows = delta.reshape(-1, n)
    codes = np.empty(rows.shape, dtype=np.uint16)
    columns = np.arange(n, dtype=np.int64)
    step = max(_PASS // n, 1)
    for start in range(0, len(rows), step):
        # The magnitude's bits above the column: one vectorised sort is a stable argsort, and ten
        # times as fast as torch's.
        keys = rows[start : start + step].abs().numpy().view(np.int32).astype(np.int64)
        keys = (keys << _COLUMN_BITS) | columns
        keys.sort(axis=1)
        order = keys & (LONGEST_ROW - 1)
        np.put_along_axis(codes[start : start + step], order, columns.astype(np.uint16)[None], 1)
    return torch.from_numpy(codes).reshape(delta.shape)


def row_length(shape: tuple[int, ...]) -> int:
    """Return how many elements a row has: all under one index of the first axis, or a vector."""
    return math.prod(shape[1:]) if len(shape) > 1 else math.prod(shape)
