"""Judge: a language model on a server marks what a candidate writes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from evomerge.core.arrays import IntArray, ScoreArray
from evomerge.errors import ConfigError, DataError, EvaluationError
from evomerge.evaluation.evaluator import evaluator
from evomerge.evaluation.examples import (
    Row,
    check_settings,
    checked_scores,
    chosen,
    content_digest,
    read_rows,
    read_text,
)
from evomerge.evaluation.http_client import Client, Meter
from evomerge.evaluation.openai_api import Asker
from evomerge.evaluation.served_subject import ServedModel, text_subject
from evomerge.evaluation.server import ServedCandidate, Server
from evomerge.evaluation.text_model import TextModel
from evomerge.evaluation.vllm_engine import VllmEngine
from evomerge.evaluation.writing import Writing, refuse_two_writers, writing_of

_PLACES = ("prompt", "answer", "reference")
_SCORE = re.compile(r"Score: (-?\d+(?:\.\d+)?)")
_REMINDER = "\n\nEnd with one line that holds nothing but `Score: ` and the number."


@evaluator("judge")
@dataclass(frozen=True, kw_only=True)
class Judge:
    """Mean mark of a judge for each answer, scaled to [0, 1].

    The judge's reply has to end with a line ``Score: NUMBER``; a reply without one is asked for
    again, with a reminder, and then fails the candidate.

    Attributes:
        server: The judge's server.
        model: Name of the judge there.
        rubric: Text of what the judge is told, with the places {prompt}, {answer} and, if wanted,
            {reference}. It has to say what the marks mean.
        examples: JSONL rows with `prompt`, and `reference` where the rubric has a place for it.
        lowest: Worst mark.
        highest: Best mark.
        samples: Replies per answer, each with its own seed, all at temperature 0; averaged.
        tries: How often a reply without a score is asked for.
        judge_tokens: Most tokens of a reply.
        api: "chat" or "completions".
        request: Keys added to every request to the judge.
        candidate: The server that holds the candidates; None: the worker's resident model.
        max_new_tokens: Most tokens of an answer.
        stop: Strings that end an answer.
        batch_tokens: Prompt tokens per batch of a resident model; "auto": what the device takes,
            halved when its memory runs out.
        batch_size: Most prompts per batch; None: as many as `batch_tokens` allow.
        max_length: Keep only the last so many prompt tokens; None: longer ones are an error.
        chat_template: Make a chat message of every prompt, with the tokenizer's template.
        chat_template_file: Jinja template to use instead.
        system_prompt: System message in front of it.
        rows: Half-open range of examples [start, stop); None: all.
        engine: What runs the worker's model, such as `{name: vllm}`; None: transformers.

    Raises:
        ConfigError: A setting is out of range.
    """

    server: Server
    model: str
    rubric: Path
    examples: Path
    lowest: float = 0.0
    highest: float = 10.0
    samples: int = 1
    tries: int = 3
    judge_tokens: int = 512
    api: Literal["completions", "chat"] = "chat"
    request: Mapping[str, Any] = field(default_factory=dict)
    candidate: ServedCandidate | None = None
    max_new_tokens: int = 256
    stop: tuple[str, ...] = ()
    batch_tokens: int | Literal["auto"] = "auto"
    batch_size: int | None = None
    max_length: int | None = None
    chat_template: bool = False
    chat_template_file: Path | None = None
    system_prompt: str | None = None
    rows: tuple[int, int] | None = None
    engine: VllmEngine | None = None

    def __post_init__(self) -> None:
        """Check the settings."""
        names = ("samples", "tries", "judge_tokens", "max_new_tokens", "batch_size", "max_length")
        positive = {name: getattr(self, name) for name in names}
        check_settings("judge", rows=self.rows, positive=positive)
        chat = self._writing.chat
        refuse_two_writers("judge", self.candidate, chat, self.engine)
        if not self.lowest < self.highest:
            raise ConfigError(f"judge: lowest {self.lowest} is not below highest {self.highest}.")

    @property
    def _writing(self) -> Writing:
        return writing_of(self)

    @property
    def auto_class(self) -> str | None:
        """Class of the resident model; None when candidates are served."""
        return "AutoModelForCausalLM" if self.candidate is None else None

    @property
    def meter(self) -> Meter:
        """What the judge cost."""
        return self._client.meter

    @cached_property
    def _client(self) -> Client:
        return Client(self.server)

    def n_examples(self) -> int:
        """Return N after checking rubric and rows; DataError names what is wrong."""
        rubric = read_text(self.rubric)
        if "{answer}" not in rubric:
            raise DataError(
                f"{self.rubric}: has no {{answer}}, so the judge would not see it; put it in."
            )
        rows = read_rows(self.examples, self.rows)
        for row in rows:
            row.text("prompt")
            if "{reference}" in rubric:
                row.text("reference")
        return len(rows)

    def example_digests(self) -> tuple[str, ...]:
        """Return (N,) digests of prompt, reference, rubric, and the chat around the prompt."""
        rubric = read_text(self.rubric)
        rows = read_rows(self.examples, self.rows)
        chat = self._writing.chat.content()
        return tuple(
            content_digest([row.digest("prompt", "reference", beside=chat), rubric]) for row in rows
        )

    def probe(self, subject: TextModel | ServedModel, positions: IntArray) -> list[str]:
        """Return all that the model writes for these examples; see `Probes`. Asks no judge."""
        writer = text_subject(subject, self.candidate)
        writer.require("AutoModelForCausalLM")
        return self._writing.texts(writer, self.examples, self.rows, positions)

    def evaluate(
        self, subject: TextModel | ServedModel, positions: IntArray | None = None
    ) -> ScoreArray:
        """Return (n,) float32 in [0, 1], in the order of `positions`.

        Raises:
            UnavailableError: A server cannot be used.
            EvaluationError: The judge does not give a score, or the model cannot answer.
        """
        wanted = chosen(self.n_examples(), positions)
        data = read_rows(self.examples, self.rows)
        rows = [data[i] for i in wanted]
        answers = self.probe(subject, wanted)
        told = [self._told(row, answer) for row, answer in zip(rows, answers, strict=True)]
        asked = [(text, sample) for text in told for sample in range(self.samples)]
        marks = self._client.map(lambda item: self._mark(*item, subject.name), asked)
        width = self.highest - self.lowest
        scores = [
            (sum(marks[i : i + self.samples]) / self.samples - self.lowest) / width
            for i in range(0, len(marks), self.samples)
        ]
        return checked_scores(scores, n=len(rows), subject=subject.name, path=self.examples)

    def _told(self, row: Row, answer: str) -> str:
        """Return the rubric with its places filled, in one pass: an answer may hold braces."""
        values = {"prompt": row.text("prompt"), "answer": answer}
        values["reference"] = str(row.values.get("reference", ""))
        pattern = "|".join(_PLACES)
        return re.sub(rf"\{{({pattern})\}}", lambda m: values[m[1]], read_text(self.rubric))

    def _mark(self, text: str, sample: int, subject: str) -> float:
        reply = ""
        for attempt in range(self.tries):
            seed = sample + attempt * self.samples
            request = {**self.request, "seed": seed}
            asker = Asker(self._client, self.model, self.api, request, exact=False)
            told = text + (_REMINDER if attempt else "")
            reply = asker.ask(told, max_tokens=self.judge_tokens).text
            mark = self._score_in(reply)
            if mark is not None:
                return mark
        raise EvaluationError(
            f"{subject}: the judge {self.model} gave no score from {self.lowest:g} to "
            f"{self.highest:g} in {self.tries} tries; its last reply ends {reply[-80:]!r}. Let the "
            'rubric ask for a last line "Score: NUMBER", or raise judge_tokens'
        )

    def _score_in(self, reply: str) -> float | None:
        """Return the mark on the last line of a reply, None when there is none in range."""
        lines = [line.strip() for line in reply.splitlines() if line.strip()]
        found = _SCORE.fullmatch(lines[-1]) if lines else None
        mark = float(found[1]) if found else None
        return mark if mark is not None and self.lowest <= mark <= self.highest else None
