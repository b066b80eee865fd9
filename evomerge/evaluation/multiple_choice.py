"""Multiple choice: does the gold option have the highest log-likelihood?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from evomerge.core.arrays import BoolArray, FloatArray, IntArray, ScoreArray
from evomerge.errors import EvaluationError
from evomerge.evaluation.batching import SAME_WITHIN, Limits
from evomerge.evaluation.chat import Chat
from evomerge.evaluation.choices import plan_choices
from evomerge.evaluation.evaluator import evaluator
from evomerge.evaluation.examples import (
    Row,
    check_settings,
    checked_scores,
    chosen,
    read_rows,
    stamp,
)
from evomerge.evaluation.margins import margin_of
from evomerge.evaluation.text_model import TextModel
from evomerge.evaluation.vllm_engine import VllmEngine

if TYPE_CHECKING:
    from evomerge.evaluation.served_subject import ServedSubject

NORMALISATIONS = ("none", "token", "char")


@evaluator("multiple_choice")
@dataclass(frozen=True, kw_only=True)
class MultipleChoice:
    """Score 1.0 where the gold option has the highest log-likelihood, else 0.0.

    Ties (equal within rounding) go to the option that comes first. What prompts begin with and
    their options share is computed once per batch; results do not depend on it.

    Attributes:
        examples: JSONL rows with `prompt` (string), `options` (list of strings, appended to
            the prompt as they are, so most start with a space) and `gold` (index).
        normalise: Divide log-likelihoods by nothing ("none"), by the option's number of
            tokens ("token") or of characters ("char").
        batch_tokens: Tokens per forward pass; "auto": what the device takes, halved when its
            memory runs out.
        batch_size: Most examples per forward pass; None: as many as `batch_tokens` allow.
        max_length: Keep only the last so many tokens; None: longer ones are an error.
        chat_template: Make a chat message of every prompt, with the tokenizer's template.
        chat_template_file: Jinja template to use instead.
        system_prompt: System message in front of it.
        rows: Half-open range of examples [start, stop); None: all.
        engine: What runs the model, such as `{name: vllm}`; None: transformers.
    """

    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    has_margins: ClassVar[bool] = True

    examples: Path
    normalise: str = "none"
    batch_tokens: int | Literal["auto"] = "auto"
    batch_size: int | None = None
    max_length: int | None = None
    chat_template: bool = False
    chat_template_file: Path | None = None
    system_prompt: str | None = None
    rows: tuple[int, int] | None = None
    engine: VllmEngine | None = None

    def __post_init__(self) -> None:
        check_settings(
            "multiple_choice",
            rows=self.rows,
            positive={"batch_size": self.batch_size, "max_length": self.max_length},
            choices={"normalise": (self.normalise, NORMALISATIONS)},
        )
        _ = self._limits, self._chat

    @property
    def _limits(self) -> Limits:
        return Limits(self.batch_tokens, self.batch_size)

    @property
    def _chat(self) -> Chat:
        return Chat(self.chat_template, self.chat_template_file, self.system_prompt)

    def n_examples(self) -> int:
        """Return N after checking every row; DataError names the first bad one."""
        return len(self._gold(read_rows(self.examples, self.rows)))

    def example_digests(self) -> tuple[str, ...]:
        """Return (N,) digests of prompt, options and gold index, and of the chat around them."""
        rows = read_rows(self.examples, self.rows)
        chat = self._chat.content()
        return tuple(row.digest("prompt", "options", "gold", beside=chat) for row in rows)

    def evaluate(
        self, subject: TextModel | ServedSubject, positions: IntArray | None = None
    ) -> ScoreArray:
        """Return (n,) float32 of 0.0 or 1.0, in the order of `positions`.

        Raises:
            EvaluationError: A log-likelihood is not finite, or an example is too long.
        """
        return self.evaluate_with_margins(subject, positions)[0]

    def evaluate_with_margins(
        self, subject: TextModel | ServedSubject, positions: IntArray | None = None
    ) -> tuple[ScoreArray, ScoreArray]:
        """Return 0.0 or 1.0, and by how much the gold option leads; see `GivesMargins`.

        Raises:
            EvaluationError: A log-likelihood is not finite, or an example is too long.
        """
        rows = read_rows(self.examples, self.rows)
        wanted = chosen(len(rows), positions)
        table, gold = self._checked_logprobs(subject, wanted), self._gold(rows)[wanted]
        scores = checked_scores(
            self.marks([_first_best(logprobs) for logprobs in table], wanted),
            n=len(wanted),
            subject=subject.name,
            path=self.examples,
        )
        margins = [margin_of(line, right) for line, right in zip(table, gold, strict=True)]
        return scores, np.array(margins, np.float32)

    def probe(self, subject: TextModel | ServedSubject, positions: IntArray) -> list[float]:
        """Return the log-likelihood of every option of these examples; see `Probes`."""
        rows = read_rows(self.examples, self.rows)
        subject.require(self.auto_class)
        return [float(x) for line in self._logprobs(subject, rows, positions) for x in line]

    def why_no_vote(self) -> str:
        """Return "": options can always be voted on."""
        return ""

    def answers(self, subject: TextModel | ServedSubject, positions: IntArray) -> list[int]:
        """Return the index of the option that the model prefers, (n,).

        Raises:
            EvaluationError: A log-likelihood is not finite, or an example is too long.
        """
        return [_first_best(logprobs) for logprobs in self._checked_logprobs(subject, positions)]

    def _checked_logprobs(
        self, subject: TextModel | ServedSubject, positions: IntArray
    ) -> list[FloatArray]:
        """Return (options,) log-likelihoods of each of these examples, all finite."""
        rows = read_rows(self.examples, self.rows)
        wanted = chosen(len(rows), positions)
        self._gold(rows)  # checks every row
        subject.require(self.auto_class)
        table = self._logprobs(subject, rows, wanted)
        for i, logprobs in zip(wanted, table, strict=True):
            if not np.isfinite(logprobs).all():
                raise EvaluationError(
                    f"{subject.name}: a log-likelihood on {rows[i].path}:{rows[i].line} is not "
                    "finite; the merged weights are probably broken."
                )
        return table

    def marks(self, answers: Sequence[int], positions: IntArray) -> ScoreArray:
        """Return (n,) 1.0 where an option is the gold one, else 0.0."""
        gold = self._gold(read_rows(self.examples, self.rows))[positions]
        is_right: BoolArray = np.array(answers, dtype=np.int64) == gold
        return is_right.astype(np.float32)

    def _logprobs(
        self, subject: TextModel | ServedSubject, rows: tuple[Row, ...], wanted: IntArray
    ) -> list[FloatArray]:
        """Return (options,) normalised log-likelihoods of each wanted row."""
        prompts = [row.text("prompt") for row in rows]
        options = [row.texts("options") for row in rows]
        if not isinstance(subject, TextModel):
            table = subject.option_logprobs(
                [prompts[i] for i in wanted],
                [options[i] for i in wanted],
                normalise=self.normalise,
            )
            return [line[: len(options[i])] for i, line in zip(wanted, table, strict=True)]
        plan = subject.prepared(
            (self, stamp(self.examples)),
            lambda: plan_choices(
                subject,
                self._chat.render(subject, prompts),
                options,
                max_length=self.max_length,
                special=not self.chat_template,
            ),
        )
        sums = subject.score_options(plan, wanted.tolist(), self._limits)
        return [
            values / plan.choices[i].lengths(options[i], self.normalise)
            for i, values in zip(wanted, sums, strict=True)
        ]

    def _gold(self, rows: tuple[Row, ...]) -> IntArray:
        for row in rows:
            row.text("prompt")
        return np.array([row.index("gold", len(row.texts("options"))) for row in rows])


def _first_best(values: FloatArray) -> int:
    """Return the first index whose value is the highest, or so close that rounding decides."""
    highest = values.max()
    return int(np.argmax(values >= highest - SAME_WITHIN * max(1.0, abs(highest))))
