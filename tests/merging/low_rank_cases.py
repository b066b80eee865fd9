"""Random LoRA factors, for the tests of methods on adapters."""

from __future__ import annotations

import torch

from evomerge.merging.low_rank import LowRank


def random_factors(m, n, ranks, *, seed=0, is_transposed=False):
    """Return one LowRank per rank, of (m, n) tensors."""
    generator = torch.Generator().manual_seed(seed)
    inside = (n, m) if is_transposed else (m, n)
    return [
        LowRank(
            torch.randn(rank, inside[1], generator=generator),
            torch.randn(inside[0], rank, generator=generator),
            is_transposed,
        )
        for rank in ranks
    ]


def dense(part):
    """Return the product in float64."""
    product = part.b.double() @ part.a.double()
    return product.T if part.is_transposed else product
