"""Gaussian process with a relevance per column: what merges never scored are worth.

Coordinates come in columns, one per model and searched parameter, with a row per group of tensors.
Points differ coarsely, in a column's mean over its rows, and finely, in what is left; fine steps
have a length scale of their own, so that what holds for the whole depth is learnt first.

Shapes: n points, m new points, D coordinates, W columns, T targets, H = W + 3 settings.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from evomerge.core.arrays import FloatArray, IntArray
from evomerge.core.choice_space import Space

MAX_COLUMNS = 32  # further ones share a length scale
_FIRST_LENGTH = 0.25  # times sqrt(W), of the unit cube
_FINE_FACTOR = 2.0  # length scale of fine steps over that of coarse ones
_FIRST_NOISE = 1e-3
_JITTER = 1e-6
_TARGETS_THAT_COUNT = 10.0  # examples answer alike: a thousand are not a thousand measurements
_DIGITS = 6  # kept of settings: the last ones differ between machines, and searches must not


@dataclass(frozen=True, eq=False)
class Columns:
    """Which coordinates belong together.

    Attributes:
        members: W arrays of indices of coordinates.
        average: (D, D) takes a row vector to the mean of each parameter and model over the rows.
        canonical: Gives (n, D) points without what does not count of their numbers.
    """

    members: tuple[IntArray, ...]
    average: FloatArray
    canonical: Callable[[FloatArray], FloatArray]

    @classmethod
    def of(cls, space: Space) -> Columns:
        """Return the columns of a search space."""
        average = np.zeros((space.dimension, space.dimension))
        members: list[IntArray] = []
        for stretch in space.layout:
            rows, width, block = stretch.rows, stretch.param.width, stretch.slice
            average[block, block] = np.kron(np.full((rows, rows), 1.0 / rows), np.eye(width))
            members += list(np.arange(stretch.start, stretch.stop).reshape(rows, width).T)
        if len(members) > MAX_COLUMNS:
            shares = np.array_split(np.arange(len(members)), MAX_COLUMNS)
            members = [np.concatenate([members[i] for i in share]) for share in shares]
        return cls(tuple(members), average, space.canonical)

    def prior(self) -> tuple[FloatArray, FloatArray]:
        """Return (H,) means and standard deviations of a process's settings, logarithms."""
        n = len(self.members)
        length = math.log(_FIRST_LENGTH * math.sqrt(n))
        mean = [*[length] * n, math.log(_FINE_FACTOR), 0.0, math.log(_FIRST_NOISE)]
        return np.array(mean), np.array([*[1.0] * n, 1.0, 1.0, 1.5])

    def split(self, points: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return the (n, D) coarse and fine parts of points."""
        counted = self.canonical(points)
        coarse = counted @ self.average
        return coarse, counted - coarse


class GaussianProcess:
    """One Matérn-5/2 process for (n, T) targets at (n, D) points; all targets share a kernel.

    Settings are the logarithms of W length scales, the factor of fine steps, the amplitude and
    the noise, chosen by the marginal likelihood and a log-normal prior.

    Source: Rasmussen & Williams 2006, equations 2.25, 2.26, 5.9; Rprop- (Riedmiller 1993).
    """

    def __init__(
        self,
        columns: Columns,
        points: FloatArray,
        targets: FloatArray,
        settings: FloatArray | None = None,
        steps: int = 0,
        variances: FloatArray | None = None,
    ) -> None:
        """Fit the targets.

        Args:
            columns: Of the coordinates.
            points: (n, D).
            targets: (n, T) finite.
            settings: (H,) to start from; None for the prior's means.
            steps: Of Rprop on the settings.
            variances: (n,) by which single points are known to be noisier; None: none is.
        """
        self._columns, self._points = columns, points
        self._mean = targets.mean(axis=0)
        self._scale = float((targets - self._mean).std()) + 1e-9
        self._targets = (targets - self._mean) / self._scale
        self._noisier = np.zeros(len(points)) if variances is None else variances / self._scale**2
        self.settings = columns.prior()[0] if settings is None else settings
        if steps:
            self.settings = self._fitted(steps)
        features = self._features(points)
        self._inverse, self._alpha, _ = self._solve(_squares(features, features), self.settings)

    def predict(self, points: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return (m, T) means and (m,) standard deviations, without noise, at (m, D) points."""
        amplitude = math.exp(self.settings[-2])
        kernel = amplitude * _matern(_squares(self._features(points), self._features(self._points)))
        variance = amplitude - ((kernel @ self._inverse.T) ** 2).sum(axis=1)
        mean: FloatArray = self._mean + self._scale * (kernel @ self._alpha)
        return mean, self._scale * np.sqrt(np.maximum(variance, 1e-9))

    def believing(self, points: FloatArray) -> GaussianProcess:
        """Return the process as if (m, D) points had the targets that it expects of them."""
        known = self._mean + self._scale * self._targets
        targets = np.vstack([known, self.predict(points)[0]])
        everywhere = np.vstack([self._points, points])
        variances = np.concatenate([self._noisier * self._scale**2, np.zeros(len(points))])
        return GaussianProcess(
            self._columns, everywhere, targets, self.settings, variances=variances
        )

    def _features(self, points: FloatArray) -> FloatArray:
        """Return points in length scales, coarse and fine side by side."""
        lengths = np.empty(points.shape[1])
        for members, value in zip(self._columns.members, self.settings, strict=False):
            lengths[members] = math.exp(value)
        coarse, fine = self._columns.split(points)
        factor = math.exp(self.settings[-3])
        return np.hstack([coarse / lengths, fine / (lengths * factor)])

    def _solve(
        self, squares: FloatArray, settings: FloatArray
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return the inverse (n, n) Cholesky factor, (n, T) weights, and the log determinant."""
        kernel = math.exp(settings[-2]) * _matern(squares)
        kernel[np.diag_indices_from(kernel)] += math.exp(settings[-1]) + _JITTER + self._noisier
        factor = np.linalg.cholesky(kernel)
        inverse = np.linalg.inv(factor)
        weights = inverse.T @ (inverse @ self._targets)
        return inverse, weights, 2.0 * np.log(np.diag(factor)).sum()

    def _fitted(self, steps: int) -> FloatArray:
        """Return the best settings that so many steps of Rprop come by."""
        coarse, fine = self._columns.split(self._points)
        per_column = [
            np.stack([_squares(part[:, own], part[:, own]) for own in self._columns.members])
            for part in (coarse, fine)
        ]
        mean, width = self._columns.prior()
        now = self.settings.copy()
        size, last = np.full(len(now), 0.2), np.zeros(len(now))
        best, highest = now, -np.inf
        for _ in range(steps):
            value, slope = self._posterior(now, per_column[0], per_column[1])
            if value > highest:
                best, highest = now.copy(), value
            agrees = np.sign(slope) * np.sign(last)
            size = np.clip(size * np.where(agrees > 0, 1.3, np.where(agrees < 0, 0.5, 1.0)),
                           1e-3, 0.6)  # fmt: skip
            now = np.clip(now + size * np.sign(slope), mean - 4 * width, mean + 4 * width)
            now[-1] = min(now[-1], 0.0)
            last = slope
        return best.round(_DIGITS)

    def _posterior(
        self, settings: FloatArray, coarse: FloatArray, fine: FloatArray
    ) -> tuple[float, FloatArray]:
        """Return the log posterior of settings and its (H,) slope.

        Args:
            settings: (H,).
            coarse: (W, n, n) squared distances of coarse parts by column.
            fine: The same of fine parts.
        """
        n_columns, n_targets = len(coarse), self._targets.shape[1]
        mean, width = self._columns.prior()
        scales, factor = np.exp(-2.0 * settings[:n_columns]), math.exp(-2.0 * settings[-3])
        squares = np.tensordot(scales, coarse, 1) + factor * np.tensordot(scales, fine, 1)
        inverse, weights, log_det = self._solve(squares, settings)
        counted = min(1.0, _TARGETS_THAT_COUNT / n_targets)
        likelihood = -0.5 * ((self._targets * weights).sum() + n_targets * log_det)
        value = counted * likelihood - 0.5 * (((settings - mean) / width) ** 2).sum()
        # Of the likelihood by the kernel's entries, then by the squared distances.
        by_kernel = 0.5 * counted * (weights @ weights.T - n_targets * (inverse.T @ inverse))
        amplitude, root = math.exp(settings[-2]), np.sqrt(5.0 * squares)
        by_square = by_kernel * (-amplitude * 5.0 / 6.0 * (1.0 + root) * np.exp(-root))
        of_coarse = scales * np.tensordot(coarse, by_square, 2)
        of_fine = scales * factor * np.tensordot(fine, by_square, 2)
        slope = np.concatenate([
            -2.0 * (of_coarse + of_fine),
            [
                -2.0 * of_fine.sum(),
                amplitude * (by_kernel * _matern(squares)).sum(),
                math.exp(settings[-1]) * np.trace(by_kernel),
            ],
        ])  # fmt: skip
        return float(value), slope - (settings - mean) / width**2


def _squares(a: FloatArray, b: FloatArray) -> FloatArray:
    """Return (n, m) squared distances of (n, D) and (m, D) points."""
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2.0 * a @ b.T
    found: FloatArray = np.maximum(squares, 0.0)
    return found


def _matern(squares: FloatArray) -> FloatArray:
    """Return the Matérn-5/2 correlation at squared distances in length scales."""
    root = np.sqrt(5.0 * squares)
    found: FloatArray = (1.0 + root + root**2 / 3.0) * np.exp(-root)
    return found
