"""The merge methods whose result is a few coefficients, each beside its float64 oracle.

`LINEAR` maps a method and mode to a `Case`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from evomerge.merging import (
    karcher,
    layer_swap,
    linear,
    model_stock,
    nlerp,
    norm_share,
    nuslerp,
    passthrough,
    slerp,
    task_arithmetic,
)
from tests.merging import oracles


@dataclass
class Reference:
    """What an operator should give.

    Attributes:
        gain: How much larger than inputs and result the terms of the sum are.
        undecided: Elements where the last bit of a statistic decides what is kept.
    """

    operator: object
    expected: np.ndarray
    gain: float = 1.0
    undecided: np.ndarray = field(default_factory=lambda: np.array(False))


@dataclass(frozen=True)
class Case:
    """One method in one mode.

    Attributes:
        draw: Draws parameters for a `Sample`; None where the formula is ill-conditioned on it.
        least, most: Numbers of experts it merges.
    """

    draw: Callable
    least: int = 1
    most: int = 16


def is_exempt(s, operator):
    """Whether the tensor of sample `s` is neither thinned nor voted on."""
    return operator.fallback(s.inputs.name, s.base.shape) is not None


def total_of(weights):
    """Return the sum of absolute weights, at least 1."""
    return max(1.0, math.fsum(map(abs, weights)))


# Linear ------------------------------------------------------------------------------------------


def _linear(normalize):
    def case(s):
        w = s.weights(0.05, 1.0, n=s.n + 1)
        expected = oracles.linear([s.base, *s.experts], w, normalize=normalize)
        return Reference(linear.Linear(weights=w, normalize=normalize), expected, total_of(w))

    return case


def _task_arithmetic(s):
    w, scale = s.weights(-1.0, 1.5), s.number(0.0, 1.5)
    operator = task_arithmetic.TaskArithmetic(weights=w, lambda_=scale)
    return Reference(operator, oracles.task_arithmetic(s.base, s.deltas, w, scale), 2 * total_of(w))


def _layer_swap(s):
    bottom, top = s.choice([(5, 2), (0, 0), (3, 1)])
    layer = s.choice([None, *range(16)])
    name = "lm_head.weight" if layer is None else f"model.layers.{layer}.mlp.w.weight"
    s.inputs = dataclasses.replace(s.inputs, name=name, n_layers=16)
    fixed = {"bottom_blend": 1, "top_blend": 2}
    shares = oracles.layer_swap_shares(16, bottom=bottom, top=top, **fixed)
    share = 0.0 if layer is None else shares[layer]
    a, b = s.pair
    operator = layer_swap.LayerSwap(bottom=bottom / 16, top=top / 16, **fixed)
    return Reference(operator, (1 - share) * a + share * b)


def _passthrough(s):
    scale = s.number(0.0, 1.5)
    return Reference(passthrough.Passthrough(scale=scale), oracles.passthrough(s.experts[0], scale))


# On the sphere -----------------------------------------------------------------------------------


def _angle(a, b):
    u, v = (x / max(np.linalg.norm(x), 1e-300) for x in (a, b))
    return 2.0 * math.atan2(np.linalg.norm(u - v), np.linalg.norm(u + v))


def _is_fair(a, b):
    """Whether the arc between two vectors is exactly none, or not nearly undefined."""
    omega = _angle(a.reshape(-1), b.reshape(-1))
    return omega < 3.0 or omega == math.pi


def _slerp(space, compat):
    def case(s):
        t = s.number(0.0, 1.0)
        points = s.experts if space == "raw" else list(s.deltas)
        if (
            not _is_fair(*points)
            or abs(abs(math.cos(_angle(*map(np.ravel, points)))) - 0.9995) < 1e-6
        ):
            return None
        arc = (oracles.slerp if compat == "paper" else oracles.slerp_mergekit)(*points, t)
        operator = slerp.Slerp(t=t, space=space, compat=compat)
        return Reference(operator, arc if space == "raw" else s.base + arc, 16)

    return case


def _nuslerp(axis):
    def case(s):
        w = s.weights(0.05, 1.0)
        t = w[1] / sum(w)
        a, b = s.deltas
        fixed = {"flatten": axis is None, "axis": -1 if axis is None else axis}
        operator = nuslerp.NuSlerp(weights=w, **fixed)
        if axis is None or a.ndim < 2:
            return (
                Reference(operator, s.base + oracles.slerp(a, b, t), 16) if _is_fair(a, b) else None
            )
        rows = zip(
            *(np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis]) for x in (a, b)), strict=True
        )
        shape = np.moveaxis(a, axis, -1).shape[:-1]
        is_unfair = np.array([not _is_fair(x, y) for x, y in rows]).reshape(shape)
        arc = oracles.slerp_rows(a, b, t, axis)
        return Reference(operator, s.base + arc, 16, np.expand_dims(is_unfair, axis))

    return case


def _spread(points, weights):
    """Length of the mean direction; near 0 where directions cancel."""
    lengths = [np.linalg.norm(x) for x in points]
    kept = [(w, x / n) for w, x, n in zip(weights, points, lengths, strict=True) if n > 0.0]
    total = math.fsum(w for w, _ in kept)
    return float(np.linalg.norm(sum(w * x for w, x in kept) / total)) if total else 0.0


def _nlerp(space, compat):
    def case(s):
        w, normalize = s.weights(0.05, 1.0), s.choice([True, False])
        points = s.experts if space == "raw" else list(s.deltas)
        lone = s.n == 1 and compat == "mergekit"
        if _spread(points, w) < 0.2:
            return None
        epsilon = 1e-8 if compat == "mergekit" else 0.0
        if epsilon and max(np.linalg.norm(x) for x in points) < 1e-3:
            return None  # mergekit's constant is as long as the vectors
        mean = points[0] if lone else oracles.nlerp(points, w, normalize=normalize, epsilon=epsilon)
        operator = nlerp.Nlerp(weights=w, normalize=normalize, space=space, compat=compat)
        return Reference(operator, mean if space == "raw" else s.base + mean, 10 * total_of(w))

    return case


def _karcher(space):
    def case(s):
        w = s.weights(0.05, 1.0)
        points = s.experts if space == "raw" else list(s.deltas)
        if _spread(points, w) < 0.2:
            return None
        mean = oracles.karcher(points, w)
        if any(_angle(x.ravel(), mean.ravel()) > 1.5 for x in points if np.any(x)):
            return None  # there may be several means, or steps that overshoot
        operator = karcher.Karcher(weights=w, space=space, max_iter=2000, tol=1e-12)
        return Reference(operator, mean if space == "raw" else s.base + mean, 10)

    return case


# Shares ------------------------------------------------------------------------------------------


def _model_stock(filter_wise, compat):
    def case(s):
        multiplier, theirs = s.number(0.5, 1.5), compat == "mergekit"
        rows = None
        if filter_wise and s.base.ndim > 1:
            rows = s.base.shape[-1] if theirs else math.prod(s.base.shape[1:])
        expected = oracles.model_stock(
            s.base, s.deltas, multiplier=multiplier, rows=rows, is_mergekit=theirs
        )
        if np.isnan(expected).any():
            return None
        fixed = {"filter_wise": filter_wise, "compat": compat}
        operator = model_stock.ModelStock(multiplier=multiplier, **fixed)
        mean = np.abs(s.deltas.mean(0)).max()
        gain = np.abs(expected - s.base).max() / mean if mean else 1.0
        # mergekit's t is unbounded where experts are opposed.
        return None if gain > 20.0 else Reference(operator, expected, 2 + gain)

    return case


def _norm_share(level):
    def case(s):
        w, q, scale = s.weights(0.05, 1.0), s.choice([-1.0, 0.0, 1.0, 2.0]), s.number(0.0, 1.5)
        squares = None if level == "tensor" else s.pooled_squares()
        expected = oracles.norm_share(s.base, s.deltas, w, q=q, lambda_=scale, squares=squares)
        operator = norm_share.NormShare(weights=w, q=q, lambda_=scale, level=level)
        return Reference(operator, expected, 2)

    return case


LINEAR = {
    "linear": Case(_linear(True)),
    "linear unnormalised": Case(_linear(False)),
    "task_arithmetic": Case(_task_arithmetic),
    "layer_swap": Case(_layer_swap, 1, 2),
    "passthrough": Case(_passthrough, 1, 1),
    "slerp raw": Case(_slerp("raw", "paper"), 2, 2),
    "slerp raw mergekit": Case(_slerp("raw", "mergekit"), 2, 2),
    "slerp delta": Case(_slerp("delta", "paper"), 2, 2),
    "nuslerp": Case(_nuslerp(None), 2, 2),
    "nuslerp rows": Case(_nuslerp(-1), 2, 2),
    "nuslerp columns": Case(_nuslerp(0), 2, 2),
    "nlerp raw": Case(_nlerp("raw", "paper")),
    "nlerp delta": Case(_nlerp("delta", "paper")),
    "nlerp delta mergekit": Case(_nlerp("delta", "mergekit")),
    "karcher raw": Case(_karcher("raw"), 2),
    "karcher delta": Case(_karcher("delta"), 2),
    "model_stock": Case(_model_stock(False, "paper"), 2),
    "model_stock filters": Case(_model_stock(True, "paper"), 2),
    "model_stock filters mergekit": Case(_model_stock(True, "mergekit"), 2),
    "norm_share tensor": Case(_norm_share("tensor")),
    "norm_share layer": Case(_norm_share("layer")),
    "norm_share model": Case(_norm_share("model")),
}
