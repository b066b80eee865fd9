"""Sixteen synthetic experts whose best merge is known: it scores 1 on every example.

A model is eight matrices. Example j measures a linear response r_j(theta) that a few of the
experts' task vectors drive, and scores exp(-(r_j(theta) - r_j(theta*))^2 / (2 width^2)). The
optimum theta* has one coefficient per expert and block of layers, many of them zero or negative,
so it lies in the search space of every algorithm.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from benchmarks.problems.problem import Part, Problem, Weights
from evomerge.core.arrays import FloatArray, ScoreArray
from evomerge.seeding import generator

NAME = "synthetic_experts"
_SEED = 1
_EXPERTS, _LAYERS, _BLOCKS, _SIDE = 16, 8, 2, 24
_TASKS = 4
_SIZES: dict[Part, int] = {"search": 64, "held-out": 128}
_WIDTH = 0.35


def is_available() -> str:
    """Return "": nothing is needed."""
    return ""


def build(folder: Path) -> Problem:
    """Return the problem; nothing is trained."""
    del folder
    rng = generator(_SEED, NAME)
    size = _SIDE * _SIDE
    base = rng.normal(size=(_LAYERS, size))
    shared = rng.normal(size=(_LAYERS, size))
    changes = 0.9 * rng.normal(size=(_EXPERTS, _LAYERS, size)) + 0.4 * shared
    changes *= 0.05 / np.sqrt((changes**2).mean(axis=2, keepdims=True))
    per_block = best_coefficients()
    of_layer = np.repeat(per_block, _LAYERS // _BLOCKS, axis=0)  # (layers, experts)
    best = np.einsum("lk,kld->ld", of_layer, changes)
    probes = {part: _probes(part, changes) for part in _SIZES}
    goals = {part: rows @ best.reshape(-1) for part, rows in probes.items()}
    flat_base = base.reshape(-1)

    def score(weights: Weights, part: Part) -> dict[str, ScoreArray]:
        flat = np.concatenate([weights[name].reshape(-1).numpy() for name in _names()])
        gaps = probes[part] @ (flat - flat_base) - goals[part]
        scores = np.exp(-0.5 * (gaps / _WIDTH) ** 2).astype(np.float32)
        return {f"skill{i}": own for i, own in enumerate(np.split(scores, _TASKS))}

    models = {"base": _tensors(base)}
    models |= {f"expert{k}": _tensors(base + change) for k, change in enumerate(changes)}
    return Problem(
        name=NAME,
        summary="base and 16 synthetic experts of 4,608 weights; smooth scores, optimum 1",
        models=models,
        has_base=True,
        merge={"name": "task_arithmetic", "groups": f"block:{_BLOCKS}", "normalize": False},
        sizes={f"skill{i}": _SIZES["search"] for i in range(_TASKS)},
        score=score,
        optimum=1.0,
    )


def best_coefficients() -> FloatArray:
    """Return the (blocks, experts) coefficients of the optimum."""
    rng = generator(_SEED, NAME, "optimum")
    coefficients: FloatArray = rng.uniform(0.2, 1.0, size=(_BLOCKS, _EXPERTS))
    kind = rng.random(size=coefficients.shape)
    coefficients[kind < 0.4] = 0.0
    coefficients[kind > 0.85] = -0.3
    return coefficients


def _names() -> list[str]:
    return [f"layers.{layer}.weight" for layer in range(_LAYERS)]


def _tensors(rows: FloatArray) -> Weights:
    return {
        name: torch.tensor(row.reshape(_SIDE, _SIDE), dtype=torch.float32)
        for name, row in zip(_names(), rows, strict=True)
    }


def _probes(part: Part, changes: FloatArray) -> FloatArray:
    """Return (N, D) responses of the examples, task after task.

    A task's examples look at the quarter of the experts that knows it, and a little at all.
    """
    rng = generator(_SEED, NAME, "examples", part)
    n_rows = _SIZES[part] * _TASKS
    task = np.repeat(np.arange(_TASKS), _SIZES[part])
    own = np.arange(_EXPERTS) % _TASKS == task[:, None]
    mix = rng.normal(size=(n_rows, _EXPERTS)) * np.where(own, 1.0, 0.15)
    mix = mix[:, :, None] * (rng.random((n_rows, 1, _LAYERS)) < 0.5)
    norms = (changes**2).sum(axis=2)  # of each expert's change in each layer
    rows = np.einsum("nkl,kld->nld", mix / norms, changes) / np.sqrt(_LAYERS / 2)
    flat: FloatArray = rows.reshape(n_rows, -1)
    return flat
