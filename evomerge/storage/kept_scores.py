"""Per-example scores of some candidates of a run on examples beside the search's, in one file.

The file is JSON: figures for people and reports, and below `scores` the float32 scores that they
were computed from, so that nothing is scored twice.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.core.arrays import ScoreArray
from evomerge.core.candidate import split_scores
from evomerge.errors import RunError
from evomerge.storage.atomic import write_atomically


class KeptScores:
    """Candidate -> its scores on one set of examples."""

    def __init__(self, path: Path, sizes: Mapping[str, int], examples: str) -> None:
        """Read what is there.

        Args:
            path: The file; need not exist yet.
            sizes: Task -> number of examples.
            examples: Digest of the examples and of how they are scored.

        Raises:
            RunError: The file is damaged, or its scores are of other examples.
        """
        self.path = path
        self._sizes = dict(sorted(sizes.items()))
        self._examples = examples
        self._rows: dict[int, ScoreArray] = {}
        if path.is_file():
            self._read()

    def _read(self) -> None:
        try:
            kept = json.loads(self.path.read_bytes())["scores"]
            sizes, examples = dict(kept["tasks"]), str(kept["examples"])
            rows = {
                int(i): np.frombuffer(base64.b64decode(text, validate=True), "<f4")
                for i, text in kept["rows"].items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(
                f"{self.path}: cannot be read: {error}. Remove it; its candidates are then scored "
                "again"
            ) from None
        n_examples = sum(self._sizes.values())
        if (sizes, examples) != (self._sizes, self._examples) or any(
            len(row) != n_examples for row in rows.values()
        ):
            raise RunError(
                f"{self.path}: holds scores of other examples than the config has now. Put the "
                "data back, or remove the file to have its candidates scored again"
            )
        self._rows = rows

    @property
    def ids(self) -> list[int]:
        """The candidates, by rising id."""
        return sorted(self._rows)

    def scores(self, candidate_id: int) -> dict[str, ScoreArray]:
        """Return task -> (N_task,) scores of a kept candidate."""
        return split_scores(self._rows[candidate_id], self._sizes)

    def add(self, candidate_id: int, scores: Mapping[str, ScoreArray]) -> None:
        """Take in a candidate's scores; `write` keeps them."""
        self._rows[candidate_id] = np.concatenate([scores[task] for task in self._sizes])

    def write(self, figures: Mapping[str, Any]) -> None:
        """Replace the file by the scores, and figures beside them.

        Raises:
            RunError: It cannot be written.
        """
        rows = {
            str(i): base64.b64encode(self._rows[i].astype("<f4").tobytes()).decode()
            for i in self.ids
        }
        kept = {"tasks": self._sizes, "examples": self._examples, "rows": rows}
        try:
            write_atomically(
                self.path, json.dumps({**figures, "scores": kept}, allow_nan=False).encode()
            )
        except OSError as error:
            raise RunError(f"{self.path}: cannot be written: {error.strerror or error}") from None
