"""Perplexity, per example: how likely are the tokens of a text?"""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import ClassVar, Literal

from evomerge.core.arrays import IntArray, ScoreArray
from evomerge.errors import ConfigError, DataError, EvaluationError
from evomerge.evaluation.batching import Limits
from evomerge.evaluation.evaluator import evaluator
from evomerge.evaluation.examples import (
    check_settings,
    checked_scores,
    chosen,
    content_digest,
    read_rows,
    read_text,
    stamp,
)
from evomerge.evaluation.text_model import TextModel
from evomerge.evaluation.vllm_engine import VllmEngine


@evaluator("perplexity")
@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """Mean token log-likelihood of each text (the log of 1/perplexity); higher is better.

    Tokens are conditioned on the tokenizer's first token (bos, else eos); where a tokenizer
    has neither, the first token of a text is not scored.

    Attributes:
        examples: JSONL rows with `text`, or a .txt file that is cut into windows.
        window: Tokens per window of a .txt file; longer JSONL texts are an error unless
            `max_length` is set.
        bits_per_byte: Score minus the bits per UTF-8 byte instead, which is comparable
            between tokenizers.
        batch_tokens: Tokens per forward pass; "auto": what the device takes, halved when its
            memory runs out.
        batch_size: Most texts per forward pass; None: as many as `batch_tokens` allow.
        max_length: Cut JSONL texts to so many tokens.
        rows: Half-open range of texts or windows [start, stop). A .txt file needs it, since
            the number of its windows depends on the tokenizer.
        engine: What runs the model, such as `{name: vllm}`; None: transformers.
    """

    auto_class: ClassVar[str] = "AutoModelForCausalLM"

    examples: Path
    window: int = 128
    bits_per_byte: bool = False
    batch_tokens: int | Literal["auto"] = "auto"
    batch_size: int | None = None
    max_length: int | None = None
    rows: tuple[int, int] | None = None
    engine: VllmEngine | None = None

    def __post_init__(self) -> None:
        check_settings(
            "perplexity",
            rows=self.rows,
            positive={"batch_size": self.batch_size, "max_length": self.max_length},
        )
        _ = self._limits
        if self.window < 2:
            raise ConfigError(f"perplexity: window is {self.window}, expected at least 2 tokens.")
        if self._is_plain and self.rows is None:
            raise ConfigError(
                f"perplexity: {self.examples} is cut into windows of tokens, so `rows` must say "
                "which to use, such as `rows: [0, 64]`."
            )

    @property
    def _limits(self) -> Limits:
        return Limits(self.batch_tokens, self.batch_size)

    @property
    def _span(self) -> tuple[int, int]:
        """The windows [start, stop) of a .txt file, which cannot go without."""
        assert self.rows is not None
        return self.rows

    @property
    def _is_plain(self) -> bool:
        return Path(self.examples).suffix == ".txt"

    def n_examples(self) -> int:
        """Return N after checking the data; DataError names the first bad row.

        That a .txt file has enough tokens for `rows` is only known with a tokenizer, hence
        in `evaluate`.
        """
        if not self._is_plain:
            rows = read_rows(self.examples, self.rows)
            for row in rows:
                row.text("text")
            return len(rows)
        start, stop = self._span
        if not read_text(self.examples).strip():
            raise DataError(f"{self.examples}: holds only white space.")
        return stop - start

    def example_digests(self) -> tuple[str, ...]:
        """Return (N,) digests: of each text, or of the whole .txt file and the window in it."""
        if not self._is_plain:
            return tuple(row.digest("text") for row in read_rows(self.examples, self.rows))
        start, stop = self._span
        whole = content_digest(read_text(self.examples))
        return tuple(content_digest([whole, self.window, i]) for i in range(start, stop))

    def evaluate(self, subject: TextModel, positions: IntArray | None = None) -> ScoreArray:
        """Return (n,) float32 mean log-likelihoods in nats per token, or -bits per byte.

        Raises:
            EvaluationError: A text is too long or has nothing to score, or a score is not
                finite.
        """
        subject.require(self.auto_class)
        wanted = chosen(self.n_examples(), positions)
        read = self._windows if self._is_plain else self._texts
        data = subject.prepared((self, stamp(self.examples)), lambda: read(subject))
        texts = [data[i] for i in wanted]
        prefix = subject.first_tokens
        starts = [max(len(prefix), 1)] * len(texts)
        sequences = []
        for i, (tokens, _) in zip(wanted + self._first, texts, strict=True):
            sequence = (*prefix, *tokens)
            if len(sequence) <= max(len(prefix), 1):
                raise EvaluationError(
                    f"{subject.name}: text {i} of {self.examples} has no token to score; remove it."
                )
            if subject.max_tokens is not None and len(sequence) > subject.max_tokens:
                raise EvaluationError(
                    f"{subject.name}: text {i} of {self.examples} is "
                    f"{len(sequence)} tokens, the model takes {subject.max_tokens}; set "
                    f"`{'window' if self._is_plain else 'max_length'}` to "
                    f"{subject.max_tokens - len(prefix)} or less."
                )
            sequences.append(sequence)
        found = subject.token_nll(sequences, starts=starts, limits=self._limits)
        if self.bits_per_byte:
            scores = [
                -float(nll.sum()) / log(2) / n_bytes
                for nll, (_, n_bytes) in zip(found, texts, strict=True)
            ]
        else:
            scores = [-float(nll.mean()) for nll in found]
        return checked_scores(
            scores,
            n=len(texts),
            subject=subject.name,
            path=self.examples,
            first=self._first,
            positions=wanted,
        )

    @property
    def _first(self) -> int:
        return self.rows[0] if self.rows else 0

    def _texts(self, subject: TextModel) -> list[tuple[tuple[int, ...], int]]:
        """Return (tokens, bytes of text they stand for) for every row."""
        texts = []
        for row in read_rows(self.examples, self.rows):
            text = row.text("text")
            tokens = subject.encode(text, special=False)
            if self.max_length is not None and len(tokens) > self.max_length:
                tokens = tokens[: self.max_length]
                text = subject.tokenizer.decode(tokens)
            texts.append((tokens, len(text.encode())))
        return texts

    def _windows(self, subject: TextModel) -> list[tuple[tuple[int, ...], int]]:
        """Return (tokens, bytes of text they stand for) for every window."""
        start, stop = self._span
        tokens = subject.encode(read_text(self.examples), special=False)
        if stop * self.window > len(tokens):
            raise DataError(
                f"{self.examples}: `rows: [{start}, {stop}]` asks for {stop} windows of "
                f"{self.window} tokens, but its {len(tokens)} tokens make "
                f"{len(tokens) // self.window}."
            )
        windows = [tokens[i * self.window : (i + 1) * self.window] for i in range(start, stop)]
        return [(w, max(1, len(subject.tokenizer.decode(w).encode()))) for w in windows]
