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
from evomerge.evaluation.margins import gives_margins
from evomerge.evaluation.packages import package_versions
from evomerge.evaluation.part import whole_of
from evomerge.evaluation.resident import tokenizer_digest
from evomerge.runtime.machine import machine_line
from evomerge.runtime.worker import Scored
from evomerge.storage.shared_ledger import SharedLedger

# Settings that say which examples are scored or how they are batched, not what each one scores.
_MARGINS = ":margins"  # ends the settings under which margins are kept
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
        needs_margins: bool = False,
    ) -> None:
        """Work out the keys.

        Args:
            ledger: Where scores are kept.
            evaluators: Task -> evaluator.
            donor: Model folder whose config and tokenizer the scored model has.
            device: Where candidates are scored.
            threads: Of the CPU: sums in another order differ in their last bits.
            needs_margins: A score counts as known only with the margin its evaluator gives.
        """
        self._ledger = ledger
        self._sizes = {task: e.n_examples() for task, e in sorted(evaluators.items())}
        self._examples = {
            task: found
            for task, evaluator in evaluators.items()
            if (found := example_digests(evaluator)) is not None
        }
        self._margins = {task for task, e in evaluators.items() if gives_margins(e)}
        self._needed = self._margins if needs_margins else set()
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

    def recall(self, weights: str) -> Scored:
        """Return what is kept of merged tensors."""
        scores, margins = (
            np.concatenate([self._read(weights, task, kind) for task in self._sizes])
            for kind in ("", _MARGINS)
        )
        lacks = np.concatenate([np.full(n, t in self._needed) for t, n in self._sizes.items()])
        scores[lacks & np.isnan(margins)] = np.nan
        return Scored(scores, margins)

    def keep(self, weights: str, scored: Scored) -> None:
        """Keep what is not NaN, but for tasks that do not say what their examples hold."""
        for kind, row in (("", scored.scores), (_MARGINS, scored.margins)):
            for task, values in split_scores(row, self._sizes).items():
                if task in self._examples and not np.isnan(values).all():
                    settings = self._settings[task] + kind
                    self._ledger.write(weights, settings, self._examples[task], values)

    def _read(self, weights: str, task: str, kind: str) -> ScoreArray:
        if task not in self._examples or (kind and task not in self._margins):
            return np.full(self._sizes[task], np.nan, np.float32)
        return self._ledger.read(weights, self._settings[task] + kind, self._examples[task])


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
