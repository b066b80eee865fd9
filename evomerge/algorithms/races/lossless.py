"""lossless: stops scoring a candidate once no other score can bring it into the archive."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from evomerge.algorithms.algorithm import SearchAlgorithm
from evomerge.algorithms.early_rejection import RejectsEarly
from evomerge.algorithms.races.race import Racing, Runner, race
from evomerge.core.arrays import IntArray
from evomerge.core.candidate import Evaluation, Proposal
from evomerge.errors import ConfigError


@race("lossless")
@dataclass(frozen=True, kw_only=True)
class Lossless:
    """Ends a candidate when the archive would refuse it though all its other scores were 1.

    Exact: with `search.look_ahead: 1` the archive is the same after every candidate as with full
    scoring, and the search the same; with more in flight, candidates that need another block are
    told later than they would have been. Only for algorithms with an archive whose members share
    examples (m2n2). What was refused is not on the Pareto front either, though it might be
    under other objectives than the archive's.

    Source: algorithms.md §8 (3).

    Attributes:
        first: Examples of the first block.
        growth: By what the number of examples grows, block by block.
    """

    first: int = 32
    growth: float = 1.5

    def around(self, algorithm: SearchAlgorithm) -> SearchAlgorithm:
        """Return the algorithm with early rejection.

        Raises:
            ConfigError: It has no archive that refuses.
        """
        if not isinstance(algorithm, RejectsEarly):
            raise ConfigError(
                "racing: `lossless` needs an algorithm that can tell when a candidate is lost "
                "(m2n2); use `paired` or `halving` with this one"
            )
        return LosslessRacing(algorithm, self.first, self.growth)


class Rejecting(SearchAlgorithm, RejectsEarly, Protocol):
    """An algorithm that can tell when a candidate is lost."""


class LosslessRacing(Racing):
    """See `Lossless`."""

    inner: Rejecting

    def ask(self) -> Proposal | None:
        """Return the next block of a candidate, else the first of a new one."""
        if self._next:
            return self._asking(self._next.popleft())
        proposal = self.inner.ask()
        order = None if proposal is None else self._order(proposal)
        if proposal is None or order is None:
            return proposal
        return self._asking(Runner(proposal, order))

    def _order(self, proposal: Proposal) -> IntArray | None:
        return self.inner.example_order(proposal) if self._sizes else None

    def tell(self, evaluation: Evaluation) -> None:
        """Pass on a result that is whole or lost; ask for more of the others."""
        self._learn_sizes(evaluation)
        runner = self._runner_of(evaluation)
        if runner is None or evaluation.error is not None or evaluation.examples is None:
            self.inner.tell(evaluation)
            return
        scored = evaluation.examples
        if self.inner.rejects(scored, evaluation.flat_scores()[scored]):
            n, n_all = len(scored), self._n_examples
            lost = f"rejected after {n} of {n_all} examples"
            self.inner.tell(replace(evaluation, scores={}, examples=None, error=lost))
            return
        rest = runner.order[~np.isin(runner.order, scored)]  # still the most telling first
        runner.order, runner.n = np.concatenate([scored, rest]), len(scored)
        self._next.append(runner)
