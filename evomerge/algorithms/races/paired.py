"""paired: stops scoring a candidate that is clearly worse than the best on the same examples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evomerge.algorithms.algorithm import SearchAlgorithm
from evomerge.algorithms.races.race import Racing, Runner, estimate, race
from evomerge.core.arrays import FloatArray
from evomerge.core.candidate import Evaluation, Proposal
from evomerge.core.choice_space import Space
from evomerge.core.example_order import example_weights, mixed_order
from evomerge.core.feasibility import Feasibility
from evomerge.core.objective import Objectives, mixture
from evomerge.core.paired_tests import PAIRED_TESTS
from evomerge.errors import ConfigError, nearest


@race("paired")
@dataclass(frozen=True, kw_only=True)
class Paired:
    """Ends a candidate when a paired test says that it is worse than the best one so far.

    All candidates are scored on the same examples in the same order, so a test looks at
    differences, example by example. The best so far (of those that keep the constraints) is
    always fully scored, and so is whatever the front gets. With several objectives their weighted
    mean is compared (`compare: mean`), or a candidate must be worse on all of them than one and the
    same member of the front (`compare: front`).

    Not exact: the algorithm is told estimates for examples that were not scored (those of the
    best, moved by the difference seen), and a candidate that is better by a little may be dropped.

    Source: algorithms.md §8 (2, 3); Maron 1994 (Hoeffding races), Birattari 2002 (F-race).

    Attributes:
        test: "normal", "wilcoxon", "mcnemar" (right or wrong, one task) or "bernstein" (holds
            for any scores and all looks together, asks for the most examples).
        confidence: Of each look.
        first: Examples of the first block.
        growth: By what the number of examples grows, block by block.
        compare: "mean" or "front".
    """

    test: str = "normal"
    confidence: float = 0.9
    first: int = 32
    growth: float = 1.5
    compare: str = "mean"

    def __post_init__(self) -> None:
        """Refuse values that cannot work.

        Raises:
            ConfigError: A field is out of range.
        """
        if self.test not in PAIRED_TESTS:
            raise ConfigError(
                f"racing.test: there is no test {self.test!r}.{nearest(self.test, PAIRED_TESTS)} "
                f"Known: {', '.join(PAIRED_TESTS)}."
            )
        if not 0.5 < self.confidence < 1.0:
            raise ConfigError(f"racing.confidence is {self.confidence}, must be in (0.5, 1)")
        if self.compare not in ("mean", "front"):
            raise ConfigError(f"racing.compare is {self.compare!r}, must be mean or front")

    def around(self, algorithm: SearchAlgorithm) -> SearchAlgorithm:
        """Return the algorithm with its candidates raced against the best."""
        return PairedRacing(algorithm, self)


class PairedRacing(Racing):
    """See `Paired`."""

    def __init__(self, inner: SearchAlgorithm, settings: Paired) -> None:
        """Args: settings: of the race."""
        super().__init__(inner, settings.first, settings.growth)
        self._settings = settings

    def start(self, space: Space, objectives: Objectives, rng: np.random.Generator) -> None:
        """Begin a run."""
        super().start(space, objectives, rng)
        weights = getattr(self.inner, "weights", None)
        self._mixture = mixture(weights, objectives, "algorithm.weights")
        self._feasibility = Feasibility(objectives.constraints)
        self._best: list[FloatArray] = []  # (N,) scores of those to beat
        self._values: list[FloatArray] = []  # (M,) objectives of the same

    def ask(self) -> Proposal | None:
        """Return the next block of a candidate, else the first of a new one."""
        if self._next:
            return self._asking(self._next.popleft())
        proposal = self.inner.ask()
        if proposal is None or not self._best:
            return proposal
        return self._asking(Runner(proposal, self._order))

    def tell(self, evaluation: Evaluation) -> None:
        """Pass on a result that is whole or lost; ask for more of the others."""
        if self._learn_sizes(evaluation):
            self._order = mixed_order(self._sizes)
            self._weights = self._test_weights()
        runner = self._runner_of(evaluation)
        if evaluation.error is None and evaluation.examples is None:
            self._compete(evaluation)
        if runner is None or evaluation.error is not None or evaluation.examples is None:
            self.inner.tell(evaluation)
        elif self._is_lost(evaluation):
            self._let_go(runner, evaluation)
        else:
            self._next.append(runner)

    def _let_go(self, runner: Runner, evaluation: Evaluation) -> None:
        """Tell what a partly scored candidate may be worth, and ask for no more of it."""
        del runner
        self.inner.tell(estimate(evaluation, self._best[0], self._sizes))

    def _test_weights(self) -> list[FloatArray]:
        """Return (N,) weights of every comparison: one of the mean, or one per objective."""
        if self._settings.compare == "mean":
            return [example_weights(self._sizes, self._objectives, self._mixture)]
        each = np.eye(len(self._objectives))
        return [example_weights(self._sizes, self._objectives, only) for only in each]

    def _is_lost(self, evaluation: Evaluation) -> bool:
        """Return whether somebody fully scored is better by every comparison."""
        assert evaluation.examples is not None
        scored = evaluation.examples
        own = evaluation.flat_scores()[scored].astype(np.float64)
        test, confidence = PAIRED_TESTS[self._settings.test], self._settings.confidence
        return any(
            all(
                test(
                    (weights[scored] * (own - best[scored]))[weights[scored] > 0.0],
                    int((weights > 0.0).sum()),
                    confidence,
                )
                for weights in self._weights
            )
            for best in self._best
        )

    def _compete(self, evaluation: Evaluation) -> None:
        """Let a fully scored candidate take its place among those to beat."""
        measured = self._feasibility.measure(evaluation)
        self._feasibility.learn(evaluation.candidate.origin, measured)
        if not self._feasibility.is_feasible(measured):
            return
        values = self._objectives.values(evaluation)
        if self._settings.compare == "mean":
            values = np.array([self._mixture @ values])
        if any((old >= values).all() for old in self._values):
            return
        kept = [i for i, old in enumerate(self._values) if not (values >= old).all()]
        self._values = [values, *(self._values[i] for i in kept)]
        row = evaluation.flat_scores().astype(np.float64)
        self._best = [row, *(self._best[i] for i in kept)]
