"""Sums in float64 whose result does not depend on the number of threads.

torch splits a reduction over all its threads when it has one output; here every output is the
sum of one row of fixed length, which a single thread computes, and the rows are added exactly.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

ROW = 4096
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


def absolute_sum(values: Tensor) -> float:
    """Return the sum of absolute values, accumulated in float64."""
    flat = values.reshape(-1)
    step = ROW * _ROWS_PER_PASS
    parts: list[float] = []
    for start in range(0, flat.numel(), step):
        parts += row_sums(flat[start : start + step].double().abs_()).tolist()
    return math.fsum(parts)


def exact_column_sums(parts: Tensor) -> Tensor:
    """Return the correctly rounded sum over the last axis of a small (…, m) float64 tensor."""
    flat = parts.reshape(-1, parts.shape[-1]).tolist()
    return torch.tensor([math.fsum(line) for line in flat], dtype=torch.float64).reshape(
        parts.shape[:-1]
    )
