"""The ledger of a run: what is scored of each recipe, so that no example is scored twice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from evomerge.core.arrays import IntArray, ScoreArray
from evomerge.core.candidate import Evaluation, known_margins, scored_examples, split_scores
from evomerge.errors import RunError
from evomerge.search.ports import RunLog


@dataclass(frozen=True, slots=True)
class Entry:
    """Where the scores of a recipe are: row and digest in the run's log, and its weights."""

    row: int
    digest: str
    weights: str


class Ledger:
    """Recipe digest -> the last row of the run's log that has its scores.

    Rows stay on disk: a run of many candidates costs a few hundred bytes of memory each.
    """

    def __init__(self, log: RunLog, tasks: Mapping[str, int]) -> None:
        """Args: log: of the run; tasks: task -> number of examples."""
        self._log = log
        self._tasks = tasks
        self._entries: dict[str, Entry] = {}

    @property
    def n_examples(self) -> int:
        """N, of all tasks."""
        return sum(self._tasks.values())

    def enter(self, recipe: str, row: int, digest: str, weights: str) -> None:
        """Take in the row that was appended for a recipe."""
        self._entries[recipe] = Entry(row, digest, weights)

    def missing(self, recipe: str, examples: IntArray | None) -> IntArray | None:
        """Return those of (n,) wanted positions that are not scored; None: all N."""
        if recipe not in self._entries:
            return examples
        wanted = np.arange(self.n_examples) if examples is None else examples
        found: IntArray = wanted[np.isnan(self._row(recipe)[0][wanted])]
        return found

    def with_known(self, recipe: str, evaluation: Evaluation) -> Evaluation:
        """Return a result together with what was scored of its recipe before.

        Raises:
            RunError: A score that was asked for is not a number.
        """
        candidate = evaluation.candidate
        known = self._entries.get(recipe)
        if evaluation.error is not None or (known is None and candidate.examples is None):
            return evaluation
        row = margins = np.full(self.n_examples, np.nan, np.float32)
        if evaluation.scores:
            row, margins = evaluation.flat_scores(), evaluation.flat_margins()
            wanted = slice(None) if candidate.examples is None else candidate.examples
            if np.isnan(row[wanted]).any():
                raise RunError(f"candidate {candidate.id}: a score is not a number")
        weights = evaluation.weights_digest
        if known is not None:
            old, old_margins = self._row(recipe)
            # A score that is new wins, and its margin with it.
            margins = np.where(np.isnan(row), old_margins, margins)
            row = np.where(np.isnan(row), old, row)
            weights = weights or known.weights
        return replace(
            evaluation,
            scores=split_scores(row, self._tasks),
            examples=scored_examples(row),
            weights_digest=weights,
            margins=known_margins(margins, self._tasks),
        )

    def _row(self, recipe: str) -> tuple[ScoreArray, ScoreArray]:
        """Return the (N,) scores and margins of a known recipe."""
        entry = self._entries[recipe]
        return self._log.read_scores(entry.row, entry.digest)
