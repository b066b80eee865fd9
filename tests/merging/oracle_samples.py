"""Tensors to try merge methods on: ordinary, degenerate, subnormal and very large ones."""

from __future__ import annotations

import dataclasses
from functools import cached_property

import numpy as np
import torch

from evomerge.merging.grams import gram_of
from tests.merging import oracles
from tests.merging.tensors import inputs_of

SHAPES = ((), (1,), (7,), (1, 1), (1, 9), (9, 1), (17, 13), (4, 3, 3, 3), (3, 4, 5))
# 2**17 + 1 elements.
LONG = (3, 43_691)
# Powers of two, so that bf16 and fp16 hold what float32 does.
MAGNITUDES = {
    torch.float32: (1.0, 1.0, 2.0**-130, 2.0**100),
    torch.bfloat16: (1.0, 1.0, 2.0**-130, 2.0**100),
    torch.float16: (1.0, 1.0, 2.0**-20, 2.0**8),
}
KINDS = ("near", "near", "near", "far", "zero", "equal", "opposite")
_LIMIT = {torch.float16: 6e4}


def as_float64(tensor):
    """Return a NumPy copy; float32 on the way holds bf16 and fp16 exactly."""
    return tensor.float().numpy().astype(np.float64)


class Sample:
    """A base with experts, as tensors for an operator and as float64 arrays for its oracle.

    Attributes:
        inputs: `TensorInputs` with Gram matrices and a threshold over this tensor and another.
        base: (shape).
        experts: E of (shape).
        deltas: (E, shape), those of float32.
    """

    def __init__(self, shape, dtype, kinds, *, magnitude=1.0, seed=0, exact=False):
        """Args: exact: experts are low-rank changes that `dtype` cannot hold."""
        self.rng = np.random.default_rng(seed)
        base = self._tensor(magnitude * self.rng.standard_normal(shape), dtype)
        experts, changes = [], []
        for kind in kinds:
            expert = self._expert(kind, base, experts, magnitude)
            changes.append(expert - base.float())
            experts.append(self._tensor(expert.numpy(), dtype))
        self.inputs = inputs_of(base, experts)
        if exact:
            whole = [base.double() + change.double() for change in changes]
            gram = gram_of([base.double(), *whole])
            self.inputs = dataclasses.replace(self.inputs, exact_deltas=tuple(changes), gram=gram)
        self.base = as_float64(base)
        self.deltas = np.stack([as_float64(delta) for delta in self.inputs.deltas])
        self.experts = (
            [self.base + delta for delta in self.deltas]
            if exact
            else [as_float64(expert) for expert in experts]
        )
        self._elsewhere = 0.05 * magnitude * self.rng.standard_normal((len(kinds), 29))
        self._elsewhere = self._elsewhere.astype(np.float32).astype(np.float64)
        self.inputs = dataclasses.replace(
            self.inputs,
            global_threshold=lambda k, density, _exact=True: self.global_thresholds(density)[k],
            pooled_gram=lambda _: self._pooled_gram,
        )

    def _tensor(self, values, dtype):
        limit = _LIMIT.get(dtype, 1e37)
        return torch.as_tensor(np.clip(values, -limit, limit)).to(dtype)

    def _expert(self, kind, base, experts, magnitude):
        noise = torch.as_tensor(self.rng.standard_normal(base.shape), dtype=torch.float32)
        wide = base.float()
        if kind in ("equal", "opposite") and experts:
            change = experts[-1].float() - wide
            return wide + change if kind == "equal" else wide - change
        return wide + {"zero": 0.0, "far": 30.0}.get(kind, 0.05) * magnitude * noise

    @property
    def n(self):
        """E."""
        return len(self.deltas)

    @property
    def pair(self):
        """The two models of a method for pairs."""
        return (self.base, self.experts[0]) if self.n == 1 else tuple(self.experts)

    @cached_property
    def _pooled_gram(self):
        gram = self.inputs.gram.copy()
        diagonal = np.arange(1, self.n + 1)
        gram[diagonal, diagonal] += np.square(self._elsewhere).sum(1)
        return gram

    def pooled_squares(self):
        """Return (E,) squared lengths over this tensor and another."""
        return [
            float(np.square(d).sum() + np.square(e).sum())
            for d, e in zip(self.deltas, self._elsewhere, strict=True)
        ]

    def global_thresholds(self, density):
        """Return (E,) thresholds over this tensor and another."""
        both = zip(self.deltas, self._elsewhere, strict=True)
        return [oracles.trim_threshold(pair, density) for pair in both]

    def tensor_thresholds(self, density):
        """Return (E,) thresholds over this tensor."""
        return [oracles.trim_threshold([delta], density) for delta in self.deltas]

    def weights(self, low, high, *, n=None):
        """Return (n,) random weights of three digits."""
        return tuple(round(float(w), 3) for w in self.rng.uniform(low, high, n or self.n))

    def number(self, low, high, *, highest=None):
        """Return a random number of three digits; those above `highest` become it."""
        drawn = round(float(self.rng.uniform(low, high)), 3)
        return drawn if highest is None else min(drawn, highest)

    def density(self):
        """Return a random density, 1 among them, at a rank that tables of magnitudes hold.

        Tables of tensors beyond 2**14 + 1 elements have that many ranks, evenly spaced; those of
        `LONG` are a whole number apart.
        """
        drawn, n = self.number(0.0, 1.1, highest=1.0), self.base.size
        if n <= 2**14 + 1:
            return drawn
        apart = (n - 1) // 2**14
        return min((1 + apart * round(drawn * n / apart) + 0.5) / n, 1.0)

    def share_of_ranks(self, values):
        """Return one of the fractions, of which a table's ranks are a whole number."""
        drawn, n = self.choice(values), self.base.size
        if n <= 2**14 + 1 or drawn == 0.0:
            return drawn
        apart = (n - 1) // 2**14
        return (apart * round(drawn * n / apart) + 0.5) / n

    def choice(self, values):
        """Return one of the values."""
        return list(values)[int(self.rng.integers(len(list(values))))]
