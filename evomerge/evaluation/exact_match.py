"""Exact match: does greedy generation give the reference answer?"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from evomerge.core.arrays import IntArray, ScoreArray
from evomerge.errors import ConfigError
from evomerge.evaluation.evaluator import evaluator
from evomerge.evaluation.examples import check_settings, checked_scores, chosen, read_rows
from evomerge.evaluation.subject import Subject


@evaluator("exact_match")
@dataclass(frozen=True, kw_only=True)
class ExactMatch:
    """Score 1.0 where the generated answer equals the reference, white space stripped.

    Attributes:
        examples: JSONL rows with `prompt` and `answer`.
        max_new_tokens: Most tokens to generate.
        stop: Strings that end an answer and are not part of it.
        pattern: Regular expression that finds the answer in the generated text and, where
            it matches, in the reference: the last match counts, its first group if it has
            one. Generated text without a match scores 0.0.
        batch_size: Prompts per batch.
        max_length: Keep only the last so many prompt tokens; None: longer ones are an error.
        rows: Half-open range of examples [start, stop); None: all.
    """

    auto_class: ClassVar[str] = "AutoModelForCausalLM"

    examples: Path
    max_new_tokens: int = 32
    stop: tuple[str, ...] = ()
    pattern: str | None = None
    batch_size: int = 16
    max_length: int | None = None
    rows: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        check_settings(
            "exact_match",
            rows=self.rows,
            positive={
                "batch_size": self.batch_size,
                "max_length": self.max_length,
                "max_new_tokens": self.max_new_tokens,
            },
        )
        if not all(self.stop):
            raise ConfigError("exact_match: a stop string is empty; it would end every answer.")
        try:
            re.compile(self.pattern or "")
        except re.error as error:
            raise ConfigError(
                f"exact_match: pattern {self.pattern!r} is not a regular expression ({error})."
            ) from error

    def n_examples(self) -> int:
        """Return N after checking every row; DataError names the first bad one."""
        rows = read_rows(self.examples, self.rows)
        for row in rows:
            row.text("prompt")
            row.text("answer")
        return len(rows)

    def example_digests(self) -> tuple[str, ...]:
        """Return (N,) digests of prompt and answer."""
        return tuple(row.digest("prompt", "answer") for row in read_rows(self.examples, self.rows))

    def evaluate(self, subject: Subject, positions: IntArray | None = None) -> ScoreArray:
        """Return (n,) float32 of 0.0 or 1.0, in the order of `positions`.

        Raises:
            EvaluationError: Logits are NaN, or a prompt is too long.
        """
        data = read_rows(self.examples, self.rows)
        rows = [data[i] for i in chosen(self.n_examples(), positions)]
        subject.require(self.auto_class)
        answers = subject.generate(
            [row.text("prompt") for row in rows],
            batch_size=self.batch_size,
            max_new_tokens=self.max_new_tokens,
            stop=self.stop,
            max_length=self.max_length,
        )
        scores = [
            float(self._is_right(answer, row.text("answer")))
            for answer, row in zip(answers, rows, strict=True)
        ]
        return checked_scores(scores, n=len(rows), subject=subject.name, path=self.examples)

    def _is_right(self, generated: str, reference: str) -> bool:
        wanted = self._extract(reference)
        found = self._extract(generated)
        if self.pattern is not None and found is None:
            return False
        return (found if found is not None else generated).strip() == (
            wanted if wanted is not None else reference
        ).strip()

    def _extract(self, text: str) -> str | None:
        """Return the last match of `pattern`, None without a pattern or a match."""
        if self.pattern is None:
            return None
        matches = list(re.finditer(self.pattern, text))
        if not matches:
            return None
        last = matches[-1]
        return (last.group(1) if last.re.groups else last.group(0)) or ""
