"""Exact match: does greedy generation give the reference answer?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from evomerge.core.arrays import IntArray, ScoreArray
from evomerge.errors import ConfigError
from evomerge.evaluation.evaluator import evaluator
from evomerge.evaluation.examples import (
    check_settings,
    checked_scores,
    chosen,
    read_rows,
)
from evomerge.evaluation.extraction import Extraction
from evomerge.evaluation.text_model import TextModel
from evomerge.evaluation.vllm_engine import VllmEngine
from evomerge.evaluation.writing import Writing, writing_of

if TYPE_CHECKING:
    from evomerge.evaluation.served_subject import ServedSubject


@evaluator("exact_match")
@dataclass(frozen=True, kw_only=True)
class ExactMatch:
    """Score 1.0 where the generated answer equals the reference, white space stripped.

    Attributes:
        examples: JSONL rows with `prompt` and `answer`.
        max_new_tokens: Most tokens to generate.
        stop: Strings that end an answer and are not part of it.
        pattern: Regular expression that finds the answer in the generated text and, where
            it matches, in the reference. Generated text without a match scores 0.0.
        group: Group of the pattern that is the answer, by number or name; None: the first
            one, or all of the match where it has none.
        match: Which match counts, "last" or "first".
        filters: Applied to both answers in this order: "first_line", "last_number",
            "lowercase", "no_punctuation", "no_spaces".
        batch_tokens: Prompt tokens per batch; "auto": what the device takes, halved when its
            memory runs out.
        batch_size: Most prompts per batch; None: as many as `batch_tokens` allow.
        cache: "dynamic" or "static" keys and values; see `generation.generate`.
        max_length: Keep only the last so many prompt tokens; None: longer ones are an error.
        chat_template: Make a chat message of every prompt, with the tokenizer's template.
        chat_template_file: Jinja template to use instead.
        system_prompt: System message in front of it.
        rows: Half-open range of examples [start, stop); None: all.
        engine: What runs the model, such as `{name: vllm}`; None: transformers.
    """

    auto_class: ClassVar[str] = "AutoModelForCausalLM"

    examples: Path
    max_new_tokens: int = 32
    stop: tuple[str, ...] = ()
    pattern: str | None = None
    group: int | str | None = None
    match: Literal["last", "first"] = "last"
    filters: tuple[str, ...] = ()
    batch_tokens: int | Literal["auto"] = "auto"
    batch_size: int | None = None
    cache: Literal["dynamic", "static"] = "dynamic"
    max_length: int | None = None
    chat_template: bool = False
    chat_template_file: Path | None = None
    system_prompt: str | None = None
    rows: tuple[int, int] | None = None
    engine: VllmEngine | None = None

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
            _ = self._extraction
        except ConfigError as error:
            raise ConfigError(f"exact_match: {error}") from error
        _ = self._writing

    @property
    def _extraction(self) -> Extraction:
        return Extraction(self.pattern, self.group, self.match, self.filters)

    @property
    def _writing(self) -> Writing:
        return writing_of(self, self.cache)

    def n_examples(self) -> int:
        """Return N after checking every row; DataError names the first bad one."""
        rows = read_rows(self.examples, self.rows)
        for row in rows:
            row.text("prompt")
            row.text("answer")
        return len(rows)

    def example_digests(self) -> tuple[str, ...]:
        """Return (N,) digests of prompt and answer, and of the chat around them."""
        rows = read_rows(self.examples, self.rows)
        chat = self._writing.chat.content()
        return tuple(row.digest("prompt", "answer", beside=chat) for row in rows)

    def evaluate(
        self, subject: TextModel | ServedSubject, positions: IntArray | None = None
    ) -> ScoreArray:
        """Return (n,) float32 of 0.0 or 1.0, in the order of `positions`.

        Raises:
            EvaluationError: Logits are NaN, or a prompt is too long.
        """
        wanted = chosen(self.n_examples(), positions)
        scores = self.marks(self.answers(subject, wanted), wanted)
        return checked_scores(scores, n=len(wanted), subject=subject.name, path=self.examples)

    def probe(self, subject: TextModel | ServedSubject, positions: IntArray) -> list[str]:
        """Return all that the model writes for these examples; see `Probes`."""
        subject.require(self.auto_class)
        return self._writing.texts(subject, self.examples, self.rows, positions)

    def why_no_vote(self) -> str:
        """Return "": extracted answers can always be voted on."""
        return ""

    def answers(self, subject: TextModel | ServedSubject, positions: IntArray) -> list[str | None]:
        """Return (n,) the answers found in what the model writes; None where there is none.

        Raises:
            EvaluationError: Logits are NaN, or a prompt is too long.
        """
        subject.require(self.auto_class)
        texts = self._writing.texts(subject, self.examples, self.rows, positions)
        return [self._extraction.find(text) for text in texts]

    def marks(self, answers: Sequence[str | None], positions: IntArray) -> ScoreArray:
        """Return (n,) 1.0 where an answer is the reference's, else 0.0."""
        rows = read_rows(self.examples, self.rows)
        extraction = self._extraction
        right = [
            extraction.is_reference(answer, rows[i].text("answer"))
            for i, answer in zip(positions, answers, strict=True)
        ]
        return np.array(right, dtype=np.float32)
