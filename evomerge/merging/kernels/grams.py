"""Compiled kernel of Gram matrices: every source element is read once, sums run in float64.

Shape letters: K sources, P = K (K + 1) / 2 pairs, R rows, n elements.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from evomerge.merging.kernels.intrinsics import load
from evomerge.merging.kernels.jit import jit
from evomerge.merging.sums import LANES

# Elements that are decoded at a time: K of these blocks in float64 should fit a core's first cache.
_GROUPS = 8
_BLOCK = _GROUPS * LANES


@jit
def gram_rows(out: Any, sources: Any, origins: Any, row: Any) -> None:
    """Write the Gram matrix of each run of `row` elements; `grams.torch_gram_rows` does the same.

    Args:
        out: (P, R) float64.
        sources: (K,) tuple of (n,), float32 or bfloat16 bits.
        origins: (K,) tuple of float64, 1 where source 0 is subtracted, else 0.
        row: Elements per run.
    """
    n_sources, n_elements = len(sources), sources[0].size
    basis = np.zeros((n_sources, _BLOCK))
    lanes = np.empty((len(out), LANES))
    for r in range(out.shape[1]):
        lanes[:] = 0.0
        stop = min((r + 1) * row, n_elements)
        for first in range(r * row, stop, _BLOCK):
            n_here = min(_BLOCK, stop - first)
            if n_here < _BLOCK:
                basis[:] = 0.0
            for k in range(n_sources):
                source, origin = sources[k][first : first + n_here], origins[k]
                for i in range(np.uint64(n_here)):
                    basis[k, i] = np.float64(load(source[i])) - origin * basis[0, i]
            _add_products(lanes, basis)
        width = LANES // 2
        while width:
            for p in range(len(out)):
                for lane in range(np.uint64(width)):
                    lanes[p, lane] += lanes[p, lane + np.uint64(width)]
            width //= 2
        out[:, r] = lanes[:, 0]


@jit
def _add_products(lanes: Any, basis: Any) -> None:
    """Add the products of every pair of rows of `basis` to that pair's lanes."""
    pair = 0
    for a in range(len(basis)):
        for b in range(a, len(basis)):
            for lane in range(np.uint64(LANES)):
                total = lanes[pair, lane]
                for group in range(_GROUPS):
                    i = lane + np.uint64(group * LANES)
                    total += basis[a, i] * basis[b, i]
                lanes[pair, lane] = total
            pair += 1
