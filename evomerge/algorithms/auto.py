"""auto (draft)."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import numpy as np

from evomerge.algorithms.algorithm import require_dimensions, search_algorithm
from evomerge.algorithms.pending import Pending
from evomerge.core.arrays import FloatArray
from evomerge.core.candidate import Evaluation, Proposal
from evomerge.core.objective import Objectives
from evomerge.core.search_space import SearchSpace

FL = dict(kv.split("=") for kv in os.environ.get("AUTO", "").split(",") if kv)


def flag(name, default):
    return type(default)(FL.get(name, default))


class One:
    """GP of one objective, ARD over columns."""

    def __init__(self, dc, df, y, theta, steps):
        self.dc, self.df = dc, df
        self.mean = y.mean(axis=0)
        self.scale = (y - self.mean).std() + 1e-9
        self.eff = min(1.0, flag("eff", 10.0) / y.shape[1])
        self.y = (y - self.mean) / self.scale
        W = len(dc)
        if theta is None:
            theta = np.concatenate(
                [
                    np.full(W, math.log(flag("l0", 0.25) * math.sqrt(W))),
                    [math.log(2.0), 0.0, math.log(1e-2)],
                ]
            )
        self.centre = np.concatenate(
            [
                np.full(W, math.log(flag("l0", 0.25) * math.sqrt(W))),
                [math.log(2.0), 0.0, math.log(1e-2)],
            ]
        )
        self.width = np.concatenate([np.full(W, flag("lw", 1.0)), [1.0, 1.0, 1.5]])
        self.theta = theta
        if steps:
            self._fit(steps)
        self.low, self.inv, self.alpha, _ = self._solve(self.theta)

    def _d2(self, t, dc, df):
        W = len(dc)
        g = np.exp(-2 * t[:W])
        return np.tensordot(g, dc, 1) + math.exp(-2 * t[W]) * np.tensordot(g, df, 1)

    def _solve(self, t):
        d2 = np.maximum(self._d2(t, self.dc, self.df), 0)
        amp, noise = math.exp(t[-2]), math.exp(t[-1])
        K = amp * matern(d2)
        K[np.diag_indices_from(K)] += noise + 1e-6
        low = np.linalg.cholesky(K)
        inv = np.linalg.inv(low)
        alpha = inv.T @ (inv @ self.y)
        return low, inv, alpha, d2

    def _value(self, t):
        low, inv, alpha, d2 = self._solve(t)
        W = len(self.dc)
        amp, noise = math.exp(t[-2]), math.exp(t[-1])
        N = self.y.shape[1]
        value = (
            self.eff * (-0.5 * (self.y * alpha).sum() - N * np.log(np.diag(low)).sum())
            - 0.5 * (((t - self.centre) / self.width) ** 2).sum()
        )
        G = self.eff * 0.5 * (alpha @ alpha.T - N * inv.T @ inv)
        if flag("kern", "m52") == "rbf":
            slope = G * (-0.5 * amp * matern(d2))
        else:
            d = np.sqrt(5 * d2)
            slope = G * (-amp * 5 / 6 * (1 + d) * np.exp(-d))
        g = np.exp(-2 * t[:W])
        f = math.exp(-2 * t[W])
        c = np.tensordot(self.dc, slope, 2)
        e = np.tensordot(self.df, slope, 2) * f
        grad = np.concatenate(
            [
                -2 * g * (c + e),
                [-2 * (g * e).sum(), amp * (G * matern(d2)).sum(), noise * np.trace(G)],
            ]
        )
        grad -= (t - self.centre) / self.width**2
        return value, grad

    def _fit(self, steps):
        t = self.theta.copy()
        size = np.full(len(t), 0.2)
        last = np.zeros(len(t))
        best, value = t, -np.inf
        for _ in range(steps):
            v, g = self._value(t)
            if v > value:
                best, value = t.copy(), v
            same = np.sign(g) * np.sign(last)
            size = np.clip(
                np.where(same > 0, size * 1.3, np.where(same < 0, size * 0.5, size)), 1e-3, 0.6
            )
            t = np.clip(
                t + size * np.sign(g), self.centre - 4 * self.width, self.centre + 4 * self.width
            )
            t[-1] = min(t[-1], 0.0)
            last = g
        self.theta = best

    def predict(self, dc, df):
        k = math.exp(self.theta[-2]) * matern(np.maximum(self._d2(self.theta, dc, df), 0))
        mean = self.mean + self.scale * (k @ self.alpha)
        rest = np.maximum(math.exp(self.theta[-2]) - ((k @ self.inv.T) ** 2).sum(axis=1), 1e-9)
        return mean, self.scale * np.sqrt(rest)


class Surrogate:
    def __init__(self, points, values, average, hyper, fit=True, columns=None):
        self.points, self.average, self.columns = points, average, columns
        dc, df = self._dist(points, points)
        thetas = hyper.get("theta") or [None] * len(values)
        steps = 0 if not fit else (40 if thetas[0] is None else flag("steps", 10))
        self.ones = [One(dc, df, y, t, steps) for y, t in zip(values, thetas)]
        self.hyper = {"theta": [o.theta for o in self.ones]}

    def _dist(self, a, b):
        ac, bc = a @ self.average, b @ self.average
        af, bf = a - ac, b - bc
        if not flag("ard", 1):
            return sq(ac, bc)[None], sq(af, bf)[None]
        dc = np.stack([sq(ac[:, c], bc[:, c]) for c in self.columns])
        df = np.stack([sq(af[:, c], bf[:, c]) for c in self.columns])
        return dc, df

    def predict(self, points):
        dc, df = self._dist(points, self.points)
        return [o.predict(dc, df) for o in self.ones]


def sq(a, b):
    return np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T, 0.0)


def matern(d2):
    if flag("kern", "m52") == "rbf":
        return np.exp(-0.5 * d2)
    d = np.sqrt(5 * d2)
    return (1 + d + d * d / 3) * np.exp(-d)


@search_algorithm("auto")
@dataclass(kw_only=True)
class Auto:
    """auto"""

    optimism: float = 1.0

    def start(self, space: SearchSpace, objectives: Objectives, rng: np.random.Generator) -> None:
        require_dimensions(space, "auto")
        self._space, self._objectives, self._rng = space, objectives, rng
        self._points, self._values, self._ids = [], [], []
        self._tasks = []
        self._pending = Pending()
        self._waiting = {}
        self._asked = 0
        self._hyper = {}
        self._columns = columns(space)
        self._fit_at = 0
        self._average = averaging(space)

    def tell(self, evaluation: Evaluation) -> None:
        key = self._pending.pop(evaluation.candidate.recipe)
        vector = None
        if key is not None:
            vector = self._waiting.pop(key)
        if evaluation.error is not None:
            return
        if vector is None:
            vector = self._space.encode(evaluation.candidate.recipe)
            if vector is None:
                return
        self._points.append(vector)
        self._values.append(self._objectives.values(evaluation))
        if flag("perex", 1):
            self._tasks.append({k: np.asarray(v, np.float64) for k, v in evaluation.scores.items()})
        else:
            self._tasks.append({k: np.array([np.mean(v)]) for k, v in evaluation.scores.items()})
        self._ids.append(evaluation.candidate.id)

    def ask(self) -> Proposal:
        vector = self._propose()
        recipe = self._space.decode(vector)
        self._waiting[self._asked] = vector
        self._pending.put(recipe, self._asked)
        self._asked += 1
        return Proposal(recipe, (), "model")

    def _propose(self):
        rng, D = self._rng, self._space.dimension
        n = len(self._points)
        if n < 3:
            return np.clip(self._space.initial() + 0.1 * rng.standard_normal(D), 0, 1)
        X, Y = np.stack(self._points), np.stack(self._values)
        M = Y.shape[1]
        w = np.full(M, 1 / M)
        if M > 1 and rng.random() < flag("front", 0.0):
            w = rng.dirichlet(np.ones(M))
        names = list(self._tasks[0])
        S = [np.stack([t[k] for t in self._tasks]) for k in names]
        e = flag("eps", 0.05)
        fwd = lambda y: np.log((y + e) / (1 - y + e))
        inv = lambda t: 1 / (1 + np.exp(-t))
        if flag("link", "logit") == "id":
            fwd = inv = lambda y: y
        L = [fwd(y) for y in S]
        mix = np.array(
            [
                [item.weights.get(k, 0.0) / sum(item.weights.values()) for k in names]
                for item in self._objectives.items
            ]
        )
        tw = w @ mix
        refit = n >= self._fit_at
        model = Surrogate(X, L, self._average, self._hyper, fit=refit, columns=self._columns)
        if refit:
            self._hyper = model.hyper
            self._fit_at = n + max(3, n // 10)
            if flag("show", 0):
                print(n, [np.round(t, 1) for t in self._hyper["theta"]])
        if self._waiting:
            P = np.stack(list(self._waiting.values()))
            mp = [m for m, _ in model.predict(P)]
            model = Surrogate(
                np.vstack([X, P]),
                [np.vstack([a, b]) for a, b in zip(L, mp)],
                self._average,
                self._hyper,
                fit=False,
                columns=self._columns,
            )
        kappas = [float(v) for v in flag("kappa", "0:1").split(":")]
        kappa = kappas[self._asked % len(kappas)]

        def acq(c, kappa=kappa):
            return sum(
                v * inv(m + kappa * s[:, None]).mean(axis=1)
                for v, (m, s) in zip(tw, model.predict(c))
            )

        value = acq(X, 0.0)
        top = np.argsort(-value, kind="stable")[: flag("elites", 6)]
        pool = X[top]
        sizes = (0.2, 0.1, 0.05, 0.02)
        for r, size in enumerate(sizes):
            cand = self._around(pool, X[top], size, flag("ncand", 400))
            cand = np.vstack([pool, cand]) if r else cand
            a = acq(cand)
            pool = cand[np.argsort(-a, kind="stable")[:8]]
        taken = np.vstack([X, *self._waiting.values()]) if self._waiting else X
        for p in pool:
            if np.abs(taken - p).max(axis=1).min() > 1e-4:
                return p
        return np.clip(pool[0] + 0.02 * rng.standard_normal(D), 0, 1)

    def _around(self, centres, elites, size, count):
        rng, D = self._rng, self._space.dimension
        c = centres[rng.integers(len(centres), size=count)]
        noise = rng.standard_normal((count, D))
        kind = rng.random(count)[:, None]
        share = np.where(rng.random((count, 1)) < 0.5, 1.0, min(1.0, 3.0 / D))
        mask = rng.random((count, D)) < share
        mask[np.arange(count), rng.integers(D, size=count)] = True
        coarse = noise @ self._average * math.sqrt(max(1, round(1 / self._average.max())))
        i, j = rng.integers(len(elites), size=(2, count))
        step = np.where(
            kind < 0.5, noise * mask, np.where(kind < 0.8, coarse, (elites[i] - elites[j]) * 4)
        )
        s = size * np.exp(rng.normal(size=(count, 1)) * 0.7)
        return np.clip(c + s * step, 0, 1)


def m_ei(z, s):
    from math import erf

    cdf = 0.5 * (1 + np.vectorize(erf)(z / math.sqrt(2)))
    pdf = np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    return s * (z * cdf + pdf)


def averaging(space):
    D = space.dimension
    out = np.zeros((D, D))
    start = 0
    for item in space.searched:
        rows, width = item.n_rows(space.n_groups), item.width
        block = np.kron(np.full((rows, rows), 1.0 / rows), np.eye(width))
        out[start : start + len(block), start : start + len(block)] = block
        start += len(block)
    return out


def columns(space):
    out, start = [], 0
    for item in space.searched:
        rows, width = item.n_rows(space.n_groups), item.width
        out += [start + k + width * np.arange(rows) for k in range(width)]
        start += rows * width
    return out
