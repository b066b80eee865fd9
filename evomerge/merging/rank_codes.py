"""Row rank codes: the order of the magnitudes in every row of a task vector, two bytes each.

DELLA drops an element by its rank in its row; the ranks do not depend on any gene, so they are
sorted out once. A row is everything under one index of the first axis; a vector is one row.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evomerge.merging.apart import empty_apart
from evomerge.merging.fused import pass_size

_MOST_CODES = 1 << 16
_SPAN = 1 << 17  # columns numbered at a time


def rank_codes(delta: Tensor) -> Tensor:
    """Return each element's rank among the magnitudes of its row, 0 the smallest.

    Equal magnitudes are placed in the order they are stored. The rank is the element's place; in
    rows of more than 65,536 elements (stacked experts) it counts in that many steps, which are
    finer than the random numbers that its probability is compared with.

    Args:
        delta: float32.

    Returns:
        Same shape, 0 to `last_code`, of `codes_dtype`.
    """
    codes = torch.empty(delta.shape, dtype=codes_dtype(delta), device=delta.device)
    if not delta.numel():
        return codes
    n = row_length(tuple(delta.shape))
    rows, row_codes = delta.reshape(-1, n), codes.view(-1, n)
    size = pass_size(delta)
    step = max(size // n, 1)
    for start in range(0, len(rows), step):
        pieces = torch.split(rows[start : start + step].reshape(-1), size)
        write_rank_codes(pieces, row_codes[start : start + step])
    return codes


def codes_dtype(like: Tensor) -> torch.dtype:
    """Return the dtype of codes where a tensor is: torch sorts out little else on a GPU."""
    return torch.uint16 if like.is_cpu else torch.int32


def write_rank_codes(pieces: Iterable[Tensor], out: Tensor) -> None:
    """Write `rank_codes` of one row, or of some that fit a pass.

    Beside `out` it holds eight bytes per element.

    Args:
        pieces: Flat float32 stretches of the row or rows, in order.
        out: (rows, n) of `codes_dtype`, contiguous.
    """
    if out.is_cpu:
        _sort_by_numpy(pieces, out.numpy())
    else:
        _sort_by_torch(pieces, out)


def last_code(n: int) -> int:
    """Return the code of the largest magnitude in a row of `n` elements."""
    return min(n, _MOST_CODES) - 1


def row_length(shape: tuple[int, ...]) -> int:
    """Return how many elements a row has: all under one index of the first axis, or a vector."""
    return math.prod(shape[1:]) if len(shape) > 1 else math.prod(shape)


def _codes_of_places(n: int, start: int, stop: int) -> np.ndarray[tuple[int], np.dtype[np.uint16]]:
    """Return the codes of places [start, stop) in a row of `n` elements."""
    places = np.arange(start, stop, dtype=np.int64)
    if n > _MOST_CODES:
        places *= 2 * last_code(n)
        places += n - 1
        places //= 2 * (n - 1)
    return places.astype(np.uint16)


def _sort_by_numpy(pieces: Iterable[Tensor], codes: np.ndarray[Any, Any]) -> None:
    n = codes.shape[1]
    # Pages of its own for a long row only: they are slow to get.
    allot = empty_apart if codes.size > _SPAN else torch.empty
    keys = allot(codes.shape, dtype=torch.int64, device=torch.device("cpu")).numpy()
    flat, start = keys.reshape(-1), 0
    for piece in pieces:
        flat[start : start + piece.numel()] = piece.abs().numpy().view(np.int32)
        start += piece.numel()
    # The magnitude's bits above the column: one vectorised sort is a stable argsort, and ten
    # times as fast as torch's.
    column_bits = (n - 1).bit_length()
    keys <<= column_bits
    spans = [slice(start, min(start + _SPAN, n)) for start in range(0, n, _SPAN)]
    for span in spans:
        keys[:, span] |= np.arange(span.start, span.stop)
    keys.sort(axis=1)
    keys &= (1 << column_bits) - 1
    for span in spans:
        found = _codes_of_places(n, span.start, span.stop)
        np.put_along_axis(codes, keys[:, span], found[None], 1)


def _sort_by_torch(pieces: Iterable[Tensor], codes: Tensor) -> None:
    n = codes.shape[1]
    order = torch.cat(list(pieces)).view(-1, n).abs().argsort(dim=1, stable=True)
    of_places = torch.from_numpy(_codes_of_places(n, 0, n).astype(np.int32)).to(codes)
    codes.scatter_(1, order, of_places.expand_as(codes))
