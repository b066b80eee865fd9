"""Greedy soup: average in one model after the other, and keep those that help."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evomerge.algorithms.algorithm import search_algorithm
from evomerge.algorithms.generations import GenerationAlgorithm, Point, best_of
from evomerge.core.arrays import FloatArray
from evomerge.core.corners import corners, random_mixture


@search_algorithm("greedy_soup")
@dataclass(kw_only=True)
class GreedySoup(GenerationAlgorithm):
    """The best model first; each next one stays if the mean of all is at least as good.

    Models are tried from the best to the worst, one evaluation after the other: K evaluations at
    most for models scored as founders, 2 K otherwise. Then there is nothing left to decide, and
    random soups follow (weights uniform on the simplex) until the budget is spent; they are the
    control that the soup has to beat. Exact as a recipe where the merge method is linear; elsewhere
    it is the parameters that are averaged, not the models.

    Source: Wortsman et al. 2022 (model soups), arXiv:2203.05482, recipe 1.
    Differs from it in nothing but the random soups at the end. A model or soup whose scoring failed
    is left out. Where the base has a weight of its own it is one of the models.
    """

    def _begin(self) -> None:
        self._models: FloatArray = corners(self._space)
        self._has_begun = False
        self._soup: list[Point] = []
        self._value = -np.inf  # of the soup
        self._left: list[Point] = []  # models to try, the best last
        self._tried: Point | None = None

    def _next_batch(self, done: list[Point]) -> list[Point]:
        if not self._has_begun:
            self._has_begun = True
            return [self._known_or(model, "model") for model in self._models]
        if not self._soup:
            self._rank(done)
        elif self._tried is not None:
            self._decide(self._tried, done[0])
        if not self._left:
            return [
                Point(random_mixture(self._models, self._rng), "random soup") for _ in self._models
            ]
        self._tried = self._left.pop()
        ingredients = [*self._soup, self._tried]
        mean = np.mean([model.vector for model in ingredients], axis=0)
        return [self._point(mean, "soup", *ingredients)]

    def _rank(self, models: list[Point]) -> None:
        """Open the soup with the best model, and queue the others."""
        scored = [point for point in models if point.value is not None]
        if not scored:
            return
        best = best_of(scored)
        self._soup, self._value = [best], best.fitness
        others = [point for point in scored if point is not best]
        self._left = sorted(others, key=lambda point: -point.fitness)[::-1]

    def _decide(self, model: Point, soup: Point) -> None:
        """Keep a model whose soup is at least as good as the soup without it."""
        if soup.value is not None and soup.value >= self._value:
            self._soup.append(model)
            self._value = soup.value
        self._tried = None
