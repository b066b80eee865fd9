"""A transform, a cache in memory and a run over them, for tests."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch

from evomerge.merging.transform import TransformDefaults, mean_parts
from evomerge.merging.transform_run import TransformRun

CALLS: list[str] = []


@dataclass(frozen=True, kw_only=True)
class Halves(TransformDefaults):
    """Half of each matrix's task vector, and the mean of the rest."""

    outputs: ClassVar = "experts"
    scale: float = 0.5

    def transform(self, tensors, survey):
        CALLS.append(tensors.name)
        if self.fallback(tensors.name, tensors.shape) is not None:
            return mean_parts(tensors.deltas, self.outputs)
        return tuple(self.scale * delta for delta in tensors.deltas)


@dataclass(frozen=True, kw_only=True)
class Shares(TransformDefaults):
    """The sum of the task vectors, each by its share of the model's squared length."""

    needs_survey: ClassVar = True

    def fallback(self, name, shape):
        return None

    def survey(self, tensors):
        CALLS.append("survey")
        total = sum(np.array([float((d.double() ** 2).sum()) for d in t.deltas]) for t in tensors)
        return np.asarray(total / max(float(np.sum(total)), 1e-30))

    def transform(self, tensors, survey):
        CALLS.append(tensors.name)
        parts = [float(s) * d for s, d in zip(survey, tensors.deltas, strict=True)]
        return (torch.stack(parts).sum(0),)


@dataclass
class MemoryEntry:
    items: dict[str, dict] = field(default_factory=dict)

    def read(self, item):
        return self.items.get(item)

    def write(self, item, tensors):
        self.items[item] = {name: tensor.clone() for name, tensor in tensors.items()}


@dataclass
class MemoryCache:
    entries: dict[str, MemoryEntry] = field(default_factory=dict)

    def entry(self, kind, parts):
        return self.entries.setdefault(repr((kind, parts)), MemoryEntry())


def run_of(transform, sources, cache=None, *, config=None, parameters=None):
    """Return a run over the first source as base and the others as experts."""
    base, *experts = sources.values()
    return TransformRun(
        type(transform).__name__.lower(),
        transform,
        parameters or {},
        base,
        experts,
        cache=cache or MemoryCache(),
        config=config or {},
    )
