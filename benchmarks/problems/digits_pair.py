"""The reference's pretrained pair: two MLPs that know the digits 0-4 and 5-9 (M2N2's experiment).

As in benchmarks/m2n2_digits.py, but the two halves of the digits are two tasks.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from benchmarks.m2n2_digits import N_FITNESS, N_HIDDEN, N_INPUTS, PAIR, Digits, load_pair
from benchmarks.problems.problem import Part, Problem, Weights
from evomerge.core.arrays import ScoreArray

NAME = "digits_pair"
_NAMES = tuple(f"layers.{layer}.{part}" for layer in (0, 1) for part in ("weight", "bias"))


def is_available() -> str:
    """Return why the problem cannot be built, "" when it can."""
    return "" if PAIR.exists() else f"needs the reference pair, {PAIR}"


def build(folder: Path) -> Problem:
    """Return the problem; nothing is trained."""
    del folder
    from sklearn.datasets import load_digits

    data = load_digits()
    parts: dict[Part, slice] = {"search": slice(N_FITNESS), "held-out": slice(N_FITNESS, None)}
    digits = {part: Digits(data.data[rows], data.target[rows]) for part, rows in parts.items()}
    is_low = {part: data.target[rows] < 5 for part, rows in parts.items()}

    def score(weights: Weights, part: Part) -> dict[str, ScoreArray]:
        flat = np.concatenate([weights[name].reshape(-1).numpy() for name in _NAMES])
        margins = digits[part].margins(flat)
        return {"low": margins[is_low[part]], "high": margins[~is_low[part]]}

    n_low = int(is_low["search"].sum())
    models = dict(zip(("a", "b"), (_tensors(vector) for vector in load_pair()), strict=True))
    return Problem(
        name=NAME,
        summary="2 MLPs of 19,210 weights (digits 0-4, 5-9), no base; accuracy",
        models=models,
        has_base=False,
        merge={"name": "linear", "normalize": False, "weights": [-0.5, 1.5]},
        sizes={"low": n_low, "high": N_FITNESS - n_low},
        score=score,
        is_margin=True,
    )


def _tensors(vector: np.ndarray) -> Weights:
    cuts = np.cumsum([N_INPUTS * N_HIDDEN, N_HIDDEN, N_HIDDEN * 10])
    parts = np.split(vector.astype(np.float32), cuts)
    shapes = ((N_INPUTS, N_HIDDEN), (N_HIDDEN,), (N_HIDDEN, 10), (10,))
    return {
        name: torch.from_numpy(part.reshape(shape).copy())
        for name, part, shape in zip(_NAMES, parts, shapes, strict=True)
    }
