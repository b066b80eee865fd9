"""TensorInputs built by hand, for operator tests."""

from __future__ import annotations

import torch

from evomerge.merging.grams import gram_of
from evomerge.merging.operator import TensorInputs


def random_tensors(shape, n, *, seed=0, dtype=torch.float32, scale=0.1):
    """Return a base and n experts near it."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator)
    experts = [(base + scale * torch.randn(shape, generator=generator)).to(dtype) for _ in range(n)]
    return base.to(dtype), experts


def inputs_of(base, experts, *, out_dtype=None, keys=None, threshold=None):
    experts = tuple(experts)
    sources = experts if base is None else (base, *experts)
    given = {} if threshold is None else {"global_threshold": threshold}
    return TensorInputs(
        name="w",
        base=base,
        experts=experts,
        out_dtype=out_dtype or experts[0].dtype,
        source_keys=tuple(keys or (f"key{k}" for k in range(len(experts)))),
        gram=gram_of(sources),
        **given,
    )


def relative_error(got, expected):
    """Return max |got - expected| over max |expected|."""
    expected = torch.as_tensor(expected, dtype=torch.float64)
    gap = (got.double() - expected).abs().max()
    return float(gap / expected.abs().max().clamp(min=1e-300))
