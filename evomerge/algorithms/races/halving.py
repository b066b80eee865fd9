"""halving: of every few candidates only the better part is scored on more examples."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from evomerge.algorithms.algorithm import SearchAlgorithm
from evomerge.algorithms.races.race import Racing, Runner, estimate, race
from evomerge.core.arrays import FloatArray
from evomerge.core.candidate import Evaluation, Proposal
from evomerge.core.choice_space import Space
from evomerge.core.example_order import example_weights, mixed_order
from evomerge.core.objective import Objectives, mixture
from evomerge.errors import ConfigError


@race("halving")
@dataclass(frozen=True, kw_only=True)
class Halving:
    """Scores a cohort on a first block, keeps the best 1 / eta of it for more, and so on.

    Candidates are ranked by the weighted mean of the objectives over the examples all of the cohort
    have. Not exact: an algorithm is told estimates for those that were left behind (the best
    candidate's scores, moved by the difference seen). It suits algorithms that work in
    generations; a cohort should be as large as one. Until a cohort is decided no other begins.

    Source: Karnin 2013, Jamieson 2016 (successive halving); algorithms.md §8 (3).

    Attributes:
        cohort: Candidates that compete; fewer when the algorithm waits for results before.
        eta: One in so many goes on.
        first: Share of the examples in the first block.
    """

    cohort: int = 8
    eta: float = 2.0
    first: float = 0.125

    def __post_init__(self) -> None:
        """Refuse values that cannot work.

        Raises:
            ConfigError: A field is out of range.
        """
        if self.cohort < 2:
            raise ConfigError(f"racing.cohort is {self.cohort}, must be at least 2")
        if not self.eta > 1.0:
            raise ConfigError(f"racing.eta is {self.eta}, must be more than 1")
        if not 0.0 < self.first < 1.0:
            raise ConfigError(f"racing.first is {self.first}, must be between 0 and 1")

    def around(self, algorithm: SearchAlgorithm) -> SearchAlgorithm:
        """Return the algorithm with its candidates raced in cohorts."""
        return HalvingRacing(algorithm, self)


class HalvingRacing(Racing):
    """See `Halving`."""

    def __init__(self, inner: SearchAlgorithm, settings: Halving) -> None:
        """Args: settings: of the race."""
        super().__init__(inner, 1, settings.eta)
        self._settings = settings

    def start(self, space: Space, objectives: Objectives, rng: np.random.Generator) -> None:
        """Begin a run."""
        super().start(space, objectives, rng)
        weights = getattr(self.inner, "weights", None)
        self._mixture = mixture(weights, objectives, "algorithm.weights")
        self._best: FloatArray | None = None  # (N,) scores of the best mean
        self._best_value = -math.inf
        self._n_members = 0  # of the cohort, at its first block
        self._n_out = 0  # of those running, not told
        self._waiting: list[tuple[Runner, Evaluation]] = []  # of the cohort, this block told

    def ask(self) -> Proposal | None:
        """Return the next block of a candidate, the first of a new one, or None to wait."""
        while True:
            if self._next:
                self._n_out += 1
                return self._asking(self._next.popleft())
            if self._n_members < self._settings.cohort:
                proposal = self.inner.ask()
                if proposal is not None and self._best is None:
                    return proposal
                if proposal is not None:
                    self._n_members += 1
                    self._n_out += 1
                    return self._asking(Runner(proposal, self._order))
            if self._n_out or not self._n_members:
                return None
            self._advance()

    def tell(self, evaluation: Evaluation) -> None:
        """Pass on whole results; keep the others until their cohort's block is told."""
        if self._learn_sizes(evaluation):
            self._first = max(1, round(self._settings.first * self._n_examples))
            self._order = mixed_order(self._sizes)
            self._weights = example_weights(self._sizes, self._objectives, self._mixture)
        runner = self._runner_of(evaluation)
        self._n_out -= runner is not None
        if runner is not None and evaluation.examples is not None and evaluation.error is None:
            self._waiting.append((runner, evaluation))
            return
        # Not where an ask finds it so: one that is answered None is in no journal.
        if not (self._n_out or self._waiting or self._next):
            self._n_members = 0
        if evaluation.error is None:
            row = evaluation.flat_scores().astype(np.float64)
            if (value := float((self._weights * row).mean())) > self._best_value:
                self._best, self._best_value = row, value
        self.inner.tell(evaluation)

    def _advance(self) -> None:
        """Let the best of a cohort go on and tell of the others."""
        assert self._best is not None
        n = min(runner.n for runner, _ in self._waiting)
        common = self._order[:n]
        rows = np.stack([evaluation.flat_scores()[common] for _, evaluation in self._waiting])
        means = (self._weights[common] * rows).mean(axis=1)
        ranking = np.argsort(-means, kind="stable")
        kept = set(ranking[: math.ceil(len(ranking) / self._settings.eta)].tolist())
        members, self._waiting = self._waiting, []
        for index, (runner, evaluation) in enumerate(members):
            if index in kept:
                self._next.append(runner)
            else:
                self.inner.tell(estimate(evaluation, self._best, self._sizes))
        self._n_members = self._settings.cohort  # nobody else joins
