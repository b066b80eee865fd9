"""Sums in float64 whose result does not depend on the number of threads.

torch splits a reduction over all its threads when it has one output; here every output is the
sum of one row of fixed length, which a single thread computes, and the rows are added exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import functional

ROW = 4096
# Partial sums of a row that a compiled kernel adds side by side.
LANES = 64
_ROWS_PER_PASS = 256


def row_sums(values: Tensor, row: int = ROW) -> Tensor:
    """Return the sum of each run of `row` elements of the last axis, the last run padded.

    Args:
        values: (…, n) float64.
        row: Elements per run.

    Returns:
        (…, ceil(n / row)) float64.
    """
    missing = -values.shape[-1] % row
    if missing:
        values = functional.pad(values, (0, missing))
    return values.reshape(*values.shape[:-1], -1, row).sum(-1)


def total(parts: Iterable[Tensor], length: int) -> Tensor:
    """Return the sum over the last axis of what comes in pieces, the same in any pieces.

    Args:
        parts: Each piece's `row_sums` of `min(length, ROW)` elements, (…, m) float64; all pieces
            but the last are of whole runs.
        length: Elements of the axis, at least 1.

    Returns:
        (…) float64.
    """
    sums, start = None, 0
    for part in parts:
        if sums is None:
            # At once: what stays of each piece would settle in the holes that the piece leaves.
            sums = part.new_empty((*part.shape[:-1], -(-length // min(length, ROW))))
        sums[..., start : start + part.shape[-1]] = part
        start += part.shape[-1]
    assert sums is not None
    return sums[..., 0] if sums.shape[-1] == 1 else exact_column_sums(sums)


def absolute_sum(values: Tensor) -> float:
    """Return the sum of absolute values, accumulated in float64."""
    return math.fsum(absolute_rows(values))


def square_sum(values: Tensor) -> float:
    """Return the sum of squares, accumulated in float64."""
    return math.fsum(square_rows(values))


def absolute_rows(values: Tensor) -> list[float]:
    """Return the sums of absolute values whose `math.fsum` is `absolute_sum`, a row of `ROW` each.

    Those of a tensor are those of its stretches one after the other, if these are whole rows.
    """
    return _rows_of(values, lambda part: part.abs_())


def square_rows(values: Tensor) -> list[float]:
    """Return the sums of squares whose `math.fsum` is `square_sum`; see `absolute_rows`."""
    return _rows_of(values, lambda part: part.mul_(part))


def _rows_of(values: Tensor, function: Callable[[Tensor], Tensor]) -> list[float]:
    """Return the sum of each row of an element-wise function of float64 copies."""
    flat = values.reshape(-1)
    step = ROW * _ROWS_PER_PASS
    parts: list[float] = []
    for start in range(0, flat.numel(), step):
        # A copy even where the values are float64 already.
        part = flat[start : start + step].to(torch.float64, copy=True)
        parts += row_sums(function(part)).tolist()
    return parts


def exact_column_sums(parts: Tensor) -> Tensor:
    """Return the correctly rounded sum over the last axis of a small (…, m) float64 tensor."""
    flat = parts.reshape(-1, parts.shape[-1]).tolist()
    sums = torch.tensor([math.fsum(line) for line in flat], dtype=torch.float64)
    return sums.reshape(parts.shape[:-1]).to(parts.device)
