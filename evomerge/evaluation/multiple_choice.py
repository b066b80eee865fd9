"""Multiple choice: does the gold option have the highest log-likelihood?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from evomerge.core.arrays import IntArray, ScoreArray
from evomerge.errors import EvaluationError
from evomerge.evaluation.evaluator import evaluator
from evomerge.evaluation.examples import Row, check_settings, checked_scores, chosen, read_rows
from evomerge.evaluation.subject import Subject

NORMALISATIONS = ("none", "token", "char")


@evaluator("multiple_choice")
@dataclass(frozen=True, kw_only=True)
class MultipleChoice:
    """Score 1.0 where the gold option has the highest log-likelihood, else 0.0.

    Ties go to the option that comes first.

    Attributes:
        examples: JSONL rows with `prompt` (string), `options` (list of strings, appended to
            the prompt as they are, so most start with a space) and `gold` (index).
        normalise: Divide log-likelihoods by nothing ("none"), by the option's number of
            tokens ("token") or of characters ("char").
        batch_size: Options per forward pass.
        max_length: Keep only the last so many tokens; None: longer ones are an error.
        rows: Half-open range of examples [start, stop); None: all.
    """

    auto_class: ClassVar[str] = "AutoModelForCausalLM"

    examples: Path
    normalise: str = "none"
    batch_size: int = 16
    max_length: int | None = None
    rows: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        check_settings(
            "multiple_choice",
            rows=self.rows,
            positive={"batch_size": self.batch_size, "max_length": self.max_length},
            choices={"normalise": (self.normalise, NORMALISATIONS)},
        )

    def n_examples(self) -> int:
        """Return N after checking every row; DataError names the first bad one."""
        return len(self._gold(read_rows(self.examples, self.rows)))

    def example_digests(self) -> tuple[str, ...]:
        """Return (N,) digests of prompt, options and gold index."""
        rows = read_rows(self.examples, self.rows)
        return tuple(row.digest("prompt", "options", "gold") for row in rows)

    def evaluate(self, subject: Subject, positions: IntArray | None = None) -> ScoreArray:
        """Return (n,) float32 of 0.0 or 1.0, in the order of `positions`.

        Raises:
            EvaluationError: A log-likelihood is not finite, or an example is too long.
        """
        data = read_rows(self.examples, self.rows)
        positions = chosen(len(data), positions)
        rows = tuple(data[i] for i in positions)
        gold = self._gold(rows)
        subject.require(self.auto_class)
        if not rows:
            return np.zeros(0, dtype=np.float32)
        options = [row.texts("options") for row in rows]
        table = subject.option_logprobs(
            [row.text("prompt") for row in rows],
            options,
            batch_size=self.batch_size,
            normalise=self.normalise,
            max_length=self.max_length,
        )
        for row, choices, logprobs in zip(rows, options, table, strict=True):
            if not np.isfinite(logprobs[: len(choices)]).all():
                raise EvaluationError(
                    f"{subject.name}: a log-likelihood on {row.path}:{row.line} is not finite; "
                    "the merged weights are probably broken."
                )
        return checked_scores(
            table.argmax(axis=1) == gold, n=len(rows), subject=subject.name, path=self.examples
        )

    def _gold(self, rows: tuple[Row, ...]) -> IntArray:
        for row in rows:
            row.text("prompt")
        return np.array([row.index("gold", len(row.texts("options"))) for row in rows])
