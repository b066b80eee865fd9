from __future__ import annotations

import numpy as np
import pytest

from evomerge.core.linear_span import LinearSpan, Segments
from evomerge.core.noise import noise_name, noise_seed
from evomerge.core.noisy_span import NoisySegments, NoisySpan
from evomerge.seeding import generator

N = 200_000
A, B = noise_name(1), noise_name(2)


def dense():
    """Two models of (N,) and their span."""
    vectors = generator(0).standard_normal((2, N))
    basis = np.stack([vectors[0], vectors[1] - vectors[0]])
    block = 1000
    parts = basis.reshape(2, -1, block)
    grams = np.einsum("ibn,jbn->bij", parts, parts)
    return vectors, LinearSpan.from_block_grams(("x", "y"), N, block, grams)


VECTORS, SPAN = dense()
NOISE = {name: generator(noise_seed(name) or 0, "n").standard_normal(N) for name in (A, B)}


def weights(model):
    """(N,) what a model computes, with other normal numbers for its noise."""
    rows = [*VECTORS, *(NOISE[name] for name in model.made)]
    total = np.zeros(N)
    breaks = model.segments.breaks
    for row, start, stop in zip(model.segments.coefficients, breaks[:-1], breaks[1:], strict=True):
        total[start:stop] = sum(w * v[start:stop] for w, v in zip(row, rows, strict=True))
    return total


def test_angles_agree_with_those_of_the_weights():
    space = NoisySpan(SPAN)
    breaks = np.array([0, 30_000, N])
    x = Segments(breaks, np.array([[0.6, 0.2, 0.8, 0.0], [0.1, 0.9, 0.8, 0.3]]))
    y = Segments(breaks, np.array([[0.2, 0.7, 0.4, 0.5], [0.5, 0.5, 0.4, 0.5]]))
    a, b = (weights(NoisySegments(part, (A, B))) for part in (x, y))
    for start, stop in ((0, None), (0, 30_000), (30_000, N)):
        u, v = a[start:stop], b[start:stop]
        wanted = np.arccos(u @ v / np.sqrt((u @ u) * (v @ v)))
        assert space.angle(x, y, start, stop) == pytest.approx(wanted, abs=0.02)
    assert space.angle(x, x) == pytest.approx(0.0, abs=1e-7)


def test_other_recipes_are_no_members():
    space, whole = NoisySpan(SPAN), np.array([0, N])
    model = NoisySegments(Segments(whole, np.array([[1.0, 0.0, 0.1]])), (A,))
    recipe = space.recipe(model)
    assert space.read(recipe) is not None
    assert NoisySpan(LinearSpan(("y", "x"), N, 1, SPAN.prefix)).read(recipe) is None
    other = space.recipe(NoisySegments(model.segments, ("noise:zz",)))
    assert space.read(other) is None
