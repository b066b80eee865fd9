"""growing: first few examples for many candidates, then more and more for fewer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evomerge.algorithms.algorithm import SearchAlgorithm
from evomerge.algorithms.races.paired import Paired, PairedRacing
from evomerge.algorithms.races.race import Runner, estimate, race
from evomerge.core.candidate import Evaluation, Proposal
from evomerge.core.choice_space import Space
from evomerge.core.objective import Objectives
from evomerge.errors import ConfigError


@race("growing")
@dataclass(frozen=True, kw_only=True)
class Growing:
    """Scores candidates on a sample that grows as the search goes on, and races them within it.

    Far from the optimum candidates differ by much, and a few examples tell them apart. So
    `per_level` candidates are scored on the first few examples, the next ones on more, up to all;
    then it is a `paired` race, which it also is within each sample. At the end of a level, and
    whenever as many examples were spent as `champion_every` full evaluations take, the candidate
    that looks best is scored in full: only such ones get onto the front.

    Not exact: the algorithm is told estimates where examples are missing (the best one's
    scores, moved by the difference seen), and is told of a champion a second time.

    Source: algorithms.md §8 (block schedules, common random numbers).

    Attributes:
        first: Examples of the first sample, at least one in `coarsest` of all.
        coarsest: The first sample is not smaller than all examples divided by this.
        growth: Of the sample, level by level.
        per_level: Candidates of a level.
        champion_every: Full evaluations' worth of examples between two champions.
        confidence: Of the test that drops candidates; see `paired`.
    """

    first: int = 32
    coarsest: float = 16.0
    growth: float = 2.0
    per_level: int = 16
    champion_every: float = 3.0
    confidence: float = 0.8

    def __post_init__(self) -> None:
        """Refuse values that cannot work.

        Raises:
            ConfigError: A field is out of range.
        """
        if self.per_level < 1 or self.champion_every <= 0.0 or self.coarsest < 1.0:
            raise ConfigError(
                "racing: per_level and coarsest must be at least 1, champion_every more than 0"
            )
        self._paired()

    def _paired(self) -> Paired:
        return Paired(first=self.first, growth=1.5, confidence=self.confidence)

    def around(self, algorithm: SearchAlgorithm) -> SearchAlgorithm:
        """Return the algorithm with its candidates scored on a growing sample."""
        return GrowingRacing(algorithm, self)


class GrowingRacing(PairedRacing):
    """See `Growing`."""

    def __init__(self, inner: SearchAlgorithm, settings: Growing) -> None:
        """Args: settings: of the race."""
        super().__init__(inner, settings._paired())
        self._rules = settings

    def start(self, space: Space, objectives: Objectives, rng: np.random.Generator) -> None:
        """Begin a run."""
        super().start(space, objectives, rng)
        self._limit = 0  # examples of this level's sample; 0: not known yet
        self._left = self._rules.per_level  # candidates of this level that are not told
        self._spent = 0  # examples since the last champion
        self._champion: Runner | None = None  # looks better than the best, not scored in full
        self._champion_value = 0.0
        self._crowned: list[Runner] = []  # told as estimates, now to be scored in full

    def ask(self) -> Proposal | None:
        """Return a champion's other examples, the next block of a candidate, or a new one."""
        if self._crowned:
            return self._asking_rest(self._crowned.pop(), "champion")
        return super().ask()

    def _block_after(self, n: int) -> int:
        """Return how many examples are to be scored after n, within the sample of this level."""
        if not self._limit:
            smallest = round(self._n_examples / self._rules.coarsest)
            self._limit = self._within(max(self._first, smallest))
        return min(super()._block_after(n), max(self._limit, n + 1))

    def _within(self, n: int) -> int:
        return self._n_examples if 1.25 * n > self._n_examples else n

    def tell(self, evaluation: Evaluation) -> None:
        """Pass on what is whole, lost, or scored on all of the sample; ask for more else."""
        asked = evaluation.candidate.examples
        if self._sizes:
            self._spent += self._n_examples if asked is None else len(asked)
        super().tell(evaluation)
        if not 0 < self._limit < self._n_examples:
            return
        is_over = self._left <= 0
        if is_over or self._spent >= self._rules.champion_every * self._n_examples:
            if self._champion is not None:
                self._crowned.append(self._champion)
            self._champion, self._spent = None, 0
        if is_over:
            self._left = self._rules.per_level
            self._limit = self._within(round(self._limit * self._rules.growth))

    def _is_lost(self, evaluation: Evaluation) -> bool:
        """Return whether a candidate lost, or is scored on all of its sample."""
        assert evaluation.examples is not None
        return len(evaluation.examples) >= self._limit or super()._is_lost(evaluation)

    def _let_go(self, runner: Runner, evaluation: Evaluation) -> None:
        """Tell what a candidate may be worth, and remember the best of them."""
        guess = estimate(evaluation, self._best[0], self._sizes)
        value = float(self._mixture @ self._objectives.values(guess))
        best = self._champion_value if self._champion else float(self._values[0][0])
        if value > best:
            self._champion, self._champion_value = runner, value
        self._left -= 1
        self.inner.tell(guess)
