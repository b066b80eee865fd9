"""Endpoint: the text evaluators, asked of candidates on an OpenAI-compatible server."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

from evomerge.core.arrays import IntArray, ScoreArray
from evomerge.errors import ConfigError
from evomerge.evaluation.evaluator import evaluator
from evomerge.evaluation.exact_match import ExactMatch
from evomerge.evaluation.multiple_choice import MultipleChoice
from evomerge.evaluation.served_subject import ServedModel, text_subject
from evomerge.evaluation.server import ServedCandidate


@evaluator("endpoint")
@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Scores candidates that a server holds; the worker has no model and needs no GPU.

    Scored by the code, and from the rows, of the evaluators `exact_match` and `multiple_choice`.

    Attributes:
        candidate: The server, and how candidates get there.
        scoring: "exact_match" or "multiple_choice".
        examples: JSONL rows with `prompt` and `answer`, or `prompt`, `options` and `gold`.
        max_new_tokens: Most tokens to generate (exact_match).
        stop: Strings that end an answer (exact_match).
        pattern: Regular expression that finds the answer (exact_match).
        group: Group of the pattern that is the answer (exact_match).
        match: Which match counts, "last" or "first" (exact_match).
        filters: Applied to both answers (exact_match).
        normalise: "none", "token" or "char" (multiple_choice with `choose: echo`).
        rows: Half-open range of examples [start, stop); None: all.

    Raises:
        ConfigError: A setting is out of range, or nothing can answer what is asked.

    Source: the API-only setting of Evo-Merging, arXiv:2509.12951.
    """

    auto_class: ClassVar[None] = None  # no resident model

    candidate: ServedCandidate
    scoring: Literal["exact_match", "multiple_choice"]
    examples: Path
    max_new_tokens: int = 32
    stop: tuple[str, ...] = ()
    pattern: str | None = None
    group: int | str | None = None
    match: Literal["last", "first"] = "last"
    filters: tuple[str, ...] = ()
    normalise: str = "none"
    rows: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        """Check the settings."""
        _ = self._scorer
        if self.scoring == "multiple_choice":
            if self.candidate.choose == "first_token" and self.normalise != "none":
                raise ConfigError("endpoint: normalise needs `choose: echo`; remove it")
            if self.candidate.api == "chat" and self.candidate.choose == "echo":
                raise ConfigError(
                    "endpoint: chat servers do not echo prompts; use `api: completions`, or "
                    "`choose: first_token`"
                )

    @cached_property
    def _scorer(self) -> ExactMatch | MultipleChoice:
        if self.scoring == "multiple_choice":
            return MultipleChoice(examples=self.examples, normalise=self.normalise, rows=self.rows)
        return ExactMatch(
            examples=self.examples,
            max_new_tokens=self.max_new_tokens,
            stop=self.stop,
            pattern=self.pattern,
            group=self.group,
            match=self.match,
            filters=self.filters,
            rows=self.rows,
        )

    def n_examples(self) -> int:
        """Return N after checking every row; DataError names the first bad one."""
        return self._scorer.n_examples()

    def example_digests(self) -> tuple[str, ...]:
        """Return (N,) digests of the examples."""
        return self._scorer.example_digests()

    def probe(self, subject: ServedModel, positions: IntArray) -> list[float] | list[str]:
        """Return what the candidate says about these examples; see `Probes`."""
        return self._scorer.probe(text_subject(subject, self.candidate), positions)

    def evaluate(self, subject: ServedModel, positions: IntArray | None = None) -> ScoreArray:
        """Return (n,) float32 of 0.0 or 1.0, in the order of `positions`.

        Raises:
            UnavailableError: The server is down, busy, answers garbage or for another candidate.
            EvaluationError: The server refuses an example, or log-likelihoods are not finite.
        """
        return self._scorer.evaluate(text_subject(subject, self.candidate), positions)
