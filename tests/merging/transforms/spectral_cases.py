"""Inputs, golden files and a slow float64 linear algebra for the tests of spectral transforms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from hypothesis import strategies as st

from evomerge.merging.transform import DeltaInputs

GOLDEN = Path(__file__).parents[3].parent / "shared" / "golden"
NAME = "model.layers.0.mlp.up_proj.weight"


def inputs_of(deltas, name=NAME):
    """Return the inputs of one tensor from its task vectors (arrays or tensors)."""
    tensors = tuple(torch.as_tensor(np.asarray(delta), dtype=torch.float32) for delta in deltas)
    return DeltaInputs(name=name, base=torch.zeros_like(tensors[0]), deltas=tensors)


def random_deltas(shape, n, *, seed=0, rank=None):
    """Return n float64 matrices whose float32 rounding is exact, of full rank unless given."""
    generator = np.random.default_rng(seed)
    if rank is None:
        found = generator.standard_normal((n, *shape))
    else:
        left = generator.standard_normal((n, shape[0], rank))
        found = left @ generator.standard_normal((n, rank, shape[1]))
    return [delta.astype(np.float32).astype(np.float64) for delta in found]


def rotation(n, seed):
    """Return a random orthogonal matrix."""
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0]


def run(transform, deltas, **kwargs):
    """Return what a transform makes of one tensor, as float64 arrays."""
    return [
        part.double().numpy() for part in transform.transform(inputs_of(deltas, **kwargs), None)
    ]


def merged(transform, deltas, **kwargs):
    """Return the method's merge: the sum of the virtual sources."""
    return sum(run(transform, deltas, **kwargs))


def oracle_svd(matrix):
    """Return (m, r), (r,), (n, r): float64 SVD without singular values under 1e-6 of the first."""
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    kept = s > 1e-6 * s[0]
    return u[:, kept], s[kept], vt[kept].T


def oracle_polar(matrix):
    """Return M (M^T M)^(-1/2), with the pseudo-inverse for a deficient rank."""
    values, vectors = np.linalg.eigh(matrix.T @ matrix)
    kept = values > 1e-12 * values.max()
    root = vectors[:, kept] / np.sqrt(values[kept]) @ vectors[:, kept].T
    return matrix @ root


def error(got, expected):
    """Return max |got - expected| over max |expected| (over 1 where that is zero)."""
    got, expected = np.asarray(got), np.asarray(expected)
    largest = np.abs(expected).max()
    return float(np.abs(got - expected).max() / (largest if largest > 0 else 1.0))


# Shapes from 1 x 1, wide, tall and square, and numbers of experts.
SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 9))
EXPERTS = st.integers(1, 5)
SEEDS = st.integers(0, 2**16)


def golden_task_vectors():
    """Return {tensor name: 3 task vectors} and {tensor name: base} of the fusion_bench inputs."""
    from safetensors.torch import load_file

    base, *experts = (
        load_file(GOLDEN / "inputs_fb" / f"{name}.safetensors")
        for name in ("base", "e1", "e2", "e3")
    )
    return {key: tuple(e[key] - base[key] for e in experts) for key in base}, base


def check_golden(transform, case, *, tolerance, survey=None, name=NAME):
    """Check every tensor of a golden file against base + the sum of the transform's results.

    fusion_bench transforms every matrix, so each goes through under the name of a linear map.
    """
    from safetensors.torch import load_file

    deltas, base = golden_task_vectors()
    golden = load_file(GOLDEN / "fb" / f"{case}.safetensors")
    assert set(golden) == set(base)
    for key, expected in golden.items():
        inputs = DeltaInputs(name=name, base=base[key], deltas=deltas[key])
        change = torch.stack(transform.transform(inputs, survey)).double().sum(0)
        wanted = expected.double() - base[key].double()
        gap = (change - wanted).abs().max()
        assert gap <= tolerance * wanted.abs().max(), (key, float(gap / wanted.abs().max()))
