"""Which scores of other runs are a run's own: same weights, same evaluator, same machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

import evomerge
from evomerge.config.build import donor_digests, file_digest
from evomerge.core.arrays import ScoreArray
from evomerge.core.candidate import split_scores
from evomerge.evaluation.evaluator import Evaluator, example_digests
from evomerge.evaluation.examples import content_digest
from evomerge.evaluation.packages import package_versions
from evomerge.evaluation.part import whole_of
from evomerge.evaluation.resident import tokenizer_digest
from evomerge.runtime.machine import machine_line
from evomerge.storage.shared_ledger import SharedLedger

# Settings that say which examples are scored or how they are batched, not what each one scores.
_NOT_SCORED = ("examples", "rows", "n", "limit", "samples", "batch_size", "batch_tokens")


class SharedScores:
    """The shared ledger as one worker sees it: its tasks, its device."""

    def __init__(
        self,
        ledger: SharedLedger,
        evaluators: Mapping[str, Evaluator],
        *,
        donor: Path,
        device: str,
        threads: int,
    ) -> None:
        """Work out the keys.

        Args:
            ledger: Where scores are kept.
            evaluators: Task -> evaluator.
            donor: Model folder whose config and tokenizer the scored model has.
            device: Where candidates are scored.
            threads: Of the CPU: sums in another order differ in their last bits.
        """
        self._ledger = ledger
        self._sizes = {task: e.n_examples() for task, e in sorted(evaluators.items())}
        self._examples = {
            task: found
            for task, evaluator in evaluators.items()
            if (found := example_digests(evaluator)) is not None
        }
        versions = [metadata.version(name) for name in ("torch", "transformers")]
        # The tokenizer's files beside the config: other tokens, other scores of the same weights.
        files = [donor_digests(donor), tokenizer_digest(donor)]
        place = [machine_line(), device, threads, evomerge.__version__, *versions]
        self._settings = {
            task: content_digest(
                [place, files, package_versions([evaluator]), _settings(whole_of(evaluator))]
            )
            for task, evaluator in evaluators.items()
        }

    def recall(self, weights: str) -> ScoreArray:
        """Return (N,) scores of merged tensors, in task-name order; NaN where none is kept."""
        parts = [
            self._ledger.read(weights, self._settings[task], self._examples[task])
            if task in self._examples
            else np.full(n, np.nan, np.float32)
            for task, n in self._sizes.items()
        ]
        return np.concatenate(parts)

    def keep(self, weights: str, row: ScoreArray) -> None:
        """Keep (N,) scores, but for NaN and for tasks that do not say what their examples hold."""
        for task, scores in split_scores(row, self._sizes).items():
            if task in self._examples:
                self._ledger.write(weights, self._settings[task], self._examples[task], scores)


def _settings(evaluator: Any) -> list[Any]:
    """Return an evaluator's class and what its scores depend on, files by their content."""
    found: list[Any] = [f"{type(evaluator).__module__}.{type(evaluator).__qualname__}"]
    for item in dataclasses.fields(evaluator):
        value = getattr(evaluator, item.name)
        if item.name in _NOT_SCORED:
            continue
        is_file = isinstance(value, Path) and value.is_file()
        found.append([item.name, file_digest(value) if is_file else repr(value)])
    return found
