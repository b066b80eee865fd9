"""A full quadratic behind a link: what one objective is worth at points never scored.

Shapes: n points, D dimensions, q = (D + 1)(D + 2) / 2 features, r = min(n, q).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np

from evomerge.core.arrays import FloatArray
from evomerge.errors import ConfigError

Link = Literal["identity", "sigmoid", "softplus"]
LINKS: tuple[Link, ...] = get_args(Link)

_CLIP = 1e-2  # how near the linear start goes to a link's ends, as a share of the values' size
_RIDGES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-6)  # tried, as a share of the mean curvature
_STEPS = 60
_MIN_NOISE = 1e-10
_DIGITS = 6  # kept of coefficients: the last ones differ between machines, and searches must not


def n_features(n_dimensions: int) -> int:
    """Return q, the number of coefficients of a full quadratic."""
    return (n_dimensions + 1) * (n_dimensions + 2) // 2


def quadratic_features(points: FloatArray) -> FloatArray:
    """Return (n, q) of 1, x_i and x_i x_j (i <= j) of (n, D) points of the unit cube.

    The cube is first moved to [-1, 1]^D: powers are then hardly correlated.
    """
    x = 2.0 * np.asarray(points, dtype=np.float64) - 1.0
    i, j = np.triu_indices(x.shape[1])
    return np.concatenate([np.ones((len(x), 1)), x, x[:, i] * x[:, j]], axis=1)


def _identity(eta: FloatArray) -> tuple[FloatArray, FloatArray]:
    return eta, np.ones_like(eta)


def _sigmoid(eta: FloatArray) -> tuple[FloatArray, FloatArray]:
    value = 0.5 * (1.0 + np.tanh(0.5 * eta))
    return value, value * (1.0 - value)


def _softplus(eta: FloatArray) -> tuple[FloatArray, FloatArray]:
    return np.logaddexp(0.0, eta), _sigmoid(eta)[0]


# eta -> (value, slope)
_FORWARD: Mapping[Link, Callable[[FloatArray], tuple[FloatArray, FloatArray]]] = {
    "identity": _identity,
    "sigmoid": _sigmoid,
    "softplus": _softplus,
}


def _inverse(link: Link, values: FloatArray) -> FloatArray:
    """Return eta of (n,) values, clipped to where it is finite and of use as a start."""
    if link == "identity":
        return values
    if link == "sigmoid":
        inside = np.clip(values, _CLIP, 1.0 - _CLIP)
        eta: FloatArray = np.log(inside) - np.log1p(-inside)
    else:
        above = np.maximum(values, _CLIP * max(float(values.max()), 1e-9))
        eta = above + np.log(-np.expm1(-above))
    return eta


def suitable_link(values: FloatArray) -> Link:
    """Return sigmoid for (n,) values in [0, 1], softplus for others of one sign, else identity."""
    low, high = float(values.min()), float(values.max())
    if low >= 0.0 and high <= 1.0:
        return "sigmoid"
    return "softplus" if low >= 0.0 or high <= 0.0 else "identity"


def check_link(link: Link, values: FloatArray, what: str) -> None:
    """Refuse (n,) values that a link cannot express.

    Raises:
        ConfigError: A value is outside the link's range; names `what`.
    """
    fits: Link = suitable_link(values)
    one_sided = fits != "identity"
    if (link == "sigmoid" and fits != "sigmoid") or (link == "softplus" and not one_sided):
        span = "[0, 1]" if link == "sigmoid" else "one side of 0"
        raise ConfigError(
            f"{what} has values from {values.min():g} to {values.max():g}, and link {link!r} "
            f"needs {span}; use `link: auto` or identity"
        )


@dataclass(frozen=True, eq=False)
class QuadraticSurrogate:
    """value(x) = sign * link(offset + features(x) @ coefficients), with its uncertainty.

    Attributes:
        link: See `Link`.
        sign: -1 where a softplus stands for values that are never positive, else 1.
        offset: Part of eta that the ridge does not shrink.
        coefficients: (q,).
        points: (n, D) what it was fitted to; the uncertainty follows from them.
        ridge: Penalty on the squared coefficients, in units of squared values.
        noise: Variance of a measured value around the surrogate.
    """

    link: Link
    sign: float
    offset: float
    coefficients: FloatArray
    points: FloatArray
    ridge: float
    noise: float

    def eta(self, points: FloatArray) -> FloatArray:
        """Return (n,) values before the link."""
        eta: FloatArray = self.offset + quadratic_features(points) @ self.coefficients
        return eta

    def predict(self, points: FloatArray) -> FloatArray:
        """Return (n,) expected values of (n, D) points."""
        value: FloatArray = self.sign * _FORWARD[self.link](self.eta(points))[0]
        return value

    def gradients(self, points: FloatArray) -> FloatArray:
        """Return (n, q) derivatives of the values by the coefficients."""
        slope = _FORWARD[self.link](self.eta(points))[1]
        return self.sign * slope[:, None] * quadratic_features(points)

    def covariance(self, gradients: FloatArray) -> FloatArray:
        """Return (n, n) posterior covariance of values with these (n, q) gradients.

        Linearised around the fit; the noise of a single measurement is not in it.
        """
        basis, shrink = self._posterior
        inside = gradients @ basis
        # What the data say nothing about keeps the prior variance, noise / ridge.
        prior: FloatArray = gradients @ gradients.T
        return (self.noise / self.ridge) * (prior - (inside * shrink) @ inside.T)

    def std(self, points: FloatArray) -> FloatArray:
        """Return (n,) posterior standard deviations of the values of (n, D) points."""
        gradients = self.gradients(points)
        basis, shrink = self._posterior
        inside = gradients @ basis
        variance = (gradients**2).sum(axis=1) - (inside**2 * shrink).sum(axis=1)
        std: FloatArray = np.sqrt(np.maximum(self.noise / self.ridge * variance, 0.0))
        return std

    @cached_property
    def _posterior(self) -> tuple[FloatArray, FloatArray]:
        """(q, r) right singular vectors of the data's gradients; (r,) share they explain."""
        _, s, vt = np.linalg.svd(self.gradients(self.points), full_matrices=False)
        return vt.T, s**2 / (s**2 + self.ridge)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping of everything but the points."""
        return {
            "link": self.link,
            "sign": self.sign,
            "offset": self.offset,
            "coefficients": self.coefficients.tolist(),
            "ridge": self.ridge,
            "noise": self.noise,
        }

    @classmethod
    def from_json(cls, body: Mapping[str, Any], points: FloatArray) -> QuadraticSurrogate:
        """Read what `to_json` wrote; `points` are those of the fit.

        Raises:
            ValueError: The link is unknown, a number is not finite, or the shapes do not fit.
            KeyError: A key is missing.
        """
        coefficients = np.asarray(body["coefficients"], dtype=np.float64)
        numbers = [float(body[key]) for key in ("sign", "offset", "ridge", "noise")]
        if body["link"] not in LINKS:
            raise ValueError(f"unknown link {body['link']!r}")
        if coefficients.shape != (n_features(points.shape[1]),):
            raise ValueError(f"{coefficients.shape} coefficients for {points.shape[1]} dimensions")
        if not (np.isfinite(coefficients).all() and np.isfinite(numbers).all() and numbers[2] > 0):
            raise ValueError("a number is not finite, or the ridge is not positive")
        sign, offset, ridge, noise = numbers
        return cls(body["link"], sign, offset, coefficients, points, ridge, noise)


def fit_quadratic(points: FloatArray, values: FloatArray, link: Link) -> QuadraticSurrogate:
    """Fit a quadratic behind a link.

    Ridge regression on the linked values gives the start, Levenberg-Marquardt minimises the
    penalised squared error of the values themselves. The ridge is the one, of a few, with the
    least leave-one-out error: next to nothing with plenty of points, telling with fewer than
    about 2 q. All of it happens in the span of the data's features, so that fewer points than
    coefficients cost less.

    Args:
        points: (n, D) in the unit cube, n >= 1.
        values: (n,) finite.
        link: Of `LINKS`; values outside its range are fitted as well as it can.

    Raises:
        ValueError: The shapes do not fit, or a value is not finite.

    Source: Li et al. 2024 (MAP), arXiv:2406.07529; algorithms.md §4. Differs from the reference
    code: linear start instead of all ones, ridge, one-sided losses may be negated scores, and a
    fit cannot fail and drop its objective.
    """
    x, y = np.asarray(points, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if x.ndim != 2 or y.shape != x.shape[:1] or not len(y):
        raise ValueError(f"{y.shape} values for points of shape {x.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("points and values must be finite")
    sign = -1.0 if link == "softplus" and y.max() <= 0.0 else 1.0
    y = sign * y
    z = _inverse(link, y)
    offset = float(z.mean())
    u, s, vt = np.linalg.svd(quadratic_features(x), full_matrices=False)
    design = u * s  # coordinates of the points in the span of their features
    curvature = float((s**2).mean()) * float((_FORWARD[link](z)[1] ** 2).mean())
    coordinates = s * (u.T @ (z - offset)) / (s**2 + float((s**2).mean()) * _RIDGES[0])
    best, chosen = math.inf, (coordinates, z, z, 1.0)
    for share in _RIDGES:
        ridge = max(share * curvature, 1e-12)
        coordinates, fitted, slopes = _refine(design, y, offset, link, coordinates, ridge)
        error = _left_out_error(slopes[:, None] * design, y - fitted, ridge)
        if error < best * (1.0 + 1e-6):  # a tie but for rounding goes to the smaller ridge
            best, chosen = error, (coordinates, fitted, slopes, ridge)
    coordinates, fitted, slopes, ridge = chosen
    energy = np.linalg.svd(slopes[:, None] * design, compute_uv=False) ** 2
    spent = float((energy / (energy + ridge)).sum())
    noise = float(((y - fitted) ** 2).sum()) / max(len(y) - spent, 1.0)
    offset, ridge, noise = (_rounded(number) for number in (offset, ridge, max(noise, _MIN_NOISE)))
    coefficients = vt.T @ coordinates
    unit = 10.0 ** (math.ceil(math.log10(max(np.abs(coefficients).max(), 1e-9))) - _DIGITS)
    coefficients = np.round(coefficients / unit) * unit
    return QuadraticSurrogate(link, sign, offset, coefficients, x, ridge, noise)


def _rounded(number: float) -> float:
    return float(f"{number:.{_DIGITS + 2}e}")


def _left_out_error(jacobian: FloatArray, residual: FloatArray, ridge: float) -> float:
    """Return the sum of squared leave-one-out residuals, linearised around a fit."""
    u, s, _ = np.linalg.svd(jacobian, full_matrices=False)
    leverage = (u**2 * (s**2 / (s**2 + ridge))).sum(axis=1)
    return float(np.square(residual / np.maximum(1.0 - leverage, 1e-3)).sum())


def _refine(
    design: FloatArray, y: FloatArray, offset: float, link: Link, start: FloatArray, ridge: float
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return (r,) coordinates, (n,) fitted values and (n,) slopes at a minimum of the loss."""

    def look(v: FloatArray) -> tuple[float, FloatArray, FloatArray]:
        value, slope = _FORWARD[link](offset + design @ v)
        return float(((y - value) ** 2).sum() + ridge * (v @ v)), value, slope

    v = start
    loss, value, slope = look(v)
    damping = 1e-3
    for _ in range(_STEPS):
        jacobian = slope[:, None] * design
        normal = jacobian.T @ jacobian
        diagonal = np.diag(normal)
        downhill = jacobian.T @ (y - value) - ridge * v
        for _ in range(12):
            damped = normal + np.diag(ridge + damping * (diagonal + 1e-12))
            step = np.linalg.solve(damped, downhill)
            new_loss, new_value, new_slope = look(v + step)
            if new_loss <= loss * (1.0 + 1e-12):  # rounding must not end the last, tiny steps
                break
            damping *= 4.0
        else:
            break  # no downhill step left
        v, loss, value, slope = v + step, new_loss, new_value, new_slope
        damping = max(damping / 6.0, 1e-12)
        if np.abs(step).max() <= 1e-12 * (1.0 + np.abs(v).max()):
            break
    return v, value, slope
