"""Race: an algorithm around an algorithm, that asks for a candidate's examples block by block.

The algorithm inside asks and is told as ever; between the two, the race asks for a first block of
examples, looks at the scores and asks for more or tells what it knows. All is decided by what was
told, so a race replays from the journal like any algorithm.

Shapes: N examples, n of them scored.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from evomerge.algorithms.algorithm import SearchAlgorithm
from evomerge.algorithms.pending import Pending
from evomerge.core.arrays import FloatArray, IntArray, ScoreArray
from evomerge.core.candidate import Evaluation, Proposal, split_scores
from evomerge.core.choice_space import Space
from evomerge.core.objective import Objectives
from evomerge.errors import ConfigError
from evomerge.registry import Registry

races = Registry("race", "evomerge.races")
race = races.register


class Race(Protocol):
    """The `racing:` section of a config: a registered dataclass."""

    def around(self, algorithm: SearchAlgorithm) -> SearchAlgorithm:
        """Return the algorithm that races the proposals of another.

        Raises:
            ConfigError: This algorithm cannot be raced so.
        """
        ...


@dataclass(eq=False)
class Runner:
    """A proposal in the race: which of its examples come next.

    Attributes:
        proposal: What the algorithm inside asked for.
        order: (N,) positions in `Evaluation.flat_scores`, first to score first.
        n: How many of them are asked for by now.
    """

    proposal: Proposal
    order: IntArray
    n: int = 0


class Racing:
    """What all races share: sizes, the queue of next blocks, and who was asked for what."""

    def __init__(self, inner: SearchAlgorithm, first: int, growth: float) -> None:
        """Args: first: examples of the first block; growth: of the examples, block by block."""
        if first < 1 or growth <= 1.0:
            raise ConfigError("racing: first must be at least 1, growth more than 1")
        self.inner = inner
        self._first, self._growth = first, growth

    def start(self, space: Space, objectives: Objectives, rng: np.random.Generator) -> None:
        """Begin a run."""
        self._objectives = objectives
        self.inner.start(space, objectives, rng)
        self._sizes: dict[str, int] = {}  # task -> examples; known from the first result
        self._runners: Pending[Runner] = Pending()
        self._next: deque[Runner] = deque()

    @property
    def _n_examples(self) -> int:
        return sum(self._sizes.values())

    def _learn_sizes(self, evaluation: Evaluation) -> bool:
        """Take the number of examples from a first result; return whether it was the first."""
        if self._sizes or evaluation.error is not None:
            return False
        self._sizes = {task: len(own) for task, own in evaluation.scores.items()}
        return True

    def _runner_of(self, evaluation: Evaluation) -> Runner | None:
        """Take back the runner that a result is of; None where all examples were asked at once.

        Of several with one recipe the oldest whose examples are scored: they may be told in
        another order, and a founder's or an early candidate's result is of none.
        """
        candidate, scored = evaluation.candidate, evaluation.examples

        def fits(runner: Runner) -> bool:
            if evaluation.error is not None:
                return candidate.examples is not None or runner.n == self._n_examples
            return scored is None or bool(np.isin(runner.order[: runner.n], scored).all())

        return self._runners.pop(candidate.recipe, fits)

    def _block_after(self, n: int) -> int:
        """Return how many examples are to be scored after n of them: all, if few would remain."""
        wanted = self._first if n == 0 else max(n + 1, round(n * self._growth))
        return self._n_examples if wanted * 1.25 > self._n_examples else wanted

    def _asking(self, runner: Runner) -> Proposal:
        """Return the proposal for a runner's next block."""
        before, runner.n = runner.n, self._block_after(runner.n)
        examples = runner.order[before : runner.n]
        is_whole = len(examples) == self._n_examples
        self._runners.put(runner.proposal.recipe, runner)
        return replace(runner.proposal, examples=None if is_whole else np.sort(examples))

    def _asking_rest(self, runner: Runner, origin: str) -> Proposal:
        """Return the proposal for all examples that a runner was not asked for."""
        rest = runner.order[runner.n :]
        runner.n = self._n_examples
        self._runners.put(runner.proposal.recipe, runner)
        return replace(runner.proposal, origin=origin, examples=np.sort(rest))


def estimate(
    evaluation: Evaluation, reference: ScoreArray | FloatArray, sizes: Mapping[str, int]
) -> Evaluation:
    """Return a partly scored evaluation with what its other scores may be.

    They follow a fully scored reference, moved in each task by how the two differ on the examples
    both have; where all scores lie in [0, 1] they stay there. `examples` still says which are real.

    Args:
        evaluation: Some scores are NaN.
        reference: (N,) scores of a fully scored candidate.
        sizes: Task -> number of examples.
    """
    row = evaluation.flat_scores().astype(np.float64)
    scored = ~np.isnan(row)
    guesses = row.copy()
    bounded = min(reference.min(), row[scored].min()) >= 0.0
    bounded &= max(reference.max(), row[scored].max()) <= 1.0
    start = 0
    for task in sorted(sizes):
        own = slice(start, start + sizes[task])
        start += sizes[task]
        here, known = scored[own], np.asarray(reference[own], dtype=np.float64)
        shift = float((row[own][here] - known[here]).mean()) if here.any() else 0.0
        guesses[own] = np.where(here, row[own], _moved(known, shift, bounded))
    return replace(evaluation, scores=split_scores(guesses.astype(np.float32), sizes))


def _moved(known: FloatArray, shift: float, bounded: bool) -> FloatArray:
    """Return scores with a mean moved by `shift`; towards 0 or 1 where they are bounded."""
    if not bounded:
        return known + shift
    room = known.mean() if shift < 0.0 else 1.0 - known.mean()
    part = min(1.0, abs(shift) / room) if room > 0.0 else 0.0
    moved: FloatArray = known * (1.0 - part) if shift < 0.0 else known + part * (1.0 - known)
    return moved
