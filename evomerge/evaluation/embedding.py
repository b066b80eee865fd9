"""Embedding similarity: are texts that belong together close to each other?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch

from evomerge.core.arrays import FloatArray, IntArray, ScoreArray
from evomerge.errors import ConfigError, EvaluationError
from evomerge.evaluation.batching import (
    SAME_WITHIN,
    Limits,
    Shape,
    filled,
    for_each_batch,
    pad,
    padded_width,
)
from evomerge.evaluation.evaluator import evaluator
from evomerge.evaluation.examples import (
    check_settings,
    checked_scores,
    chosen,
    content_digest,
    read_rows,
    stamp,
)
from evomerge.evaluation.subject import Subject

METRICS = ("closeness", "retrieval")
POOLINGS = ("mean", "first", "last")


@evaluator("embedding_similarity")
@dataclass(frozen=True, kw_only=True)
class EmbeddingSimilarity:
    """Score how well the cosine of two texts' embeddings tells whether they belong together.

    Attributes:
        examples: JSONL rows with `first` and `second` (strings) and, for "closeness", `score`
            (number).
        metric: "closeness": 1 minus the distance of the cosine to the row's `score`, at most 1
            and at least -1. "retrieval": 1.0 where, of all rows' seconds, none is closer to
            `first` than the row's own, else 0.0.
        score_range: Lowest and highest `score`, mapped to cosines 0 and 1.
        pooling: One vector from a text's tokens: their "mean", the "first" (CLS) or the "last".
        batch_tokens: Tokens per forward pass; "auto": what the device takes, halved when its
            memory runs out.
        batch_size: Most texts per forward pass; None: as many as `batch_tokens` allow.
        max_length: Texts are cut to so many tokens; None: to what the model takes.
        rows: Half-open range of examples [start, stop); None: all.

    Source: Reimers and Gurevych 2019 (Sentence-BERT), arXiv:1908.10084, for pooling and cosine.
    Differs from it: a score per example instead of one rank correlation over all of them.
    """

    auto_class: ClassVar[str] = "AutoModel"

    examples: Path
    metric: Literal["closeness", "retrieval"] = "closeness"
    score_range: tuple[float, float] = (0.0, 1.0)
    pooling: Literal["mean", "first", "last"] = "mean"
    batch_tokens: int | Literal["auto"] = "auto"
    batch_size: int | None = None
    max_length: int | None = None
    rows: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        """Check the settings."""
        check_settings(
            "embedding_similarity",
            rows=self.rows,
            positive={"batch_size": self.batch_size, "max_length": self.max_length},
            choices={"metric": (self.metric, METRICS), "pooling": (self.pooling, POOLINGS)},
        )
        low, high = self.score_range
        if not low < high:
            raise ConfigError(
                f"embedding_similarity: score_range is {[low, high]}, expected [low, high] with "
                "low < high."
            )
        _ = self._limits

    @property
    def _limits(self) -> Limits:
        return Limits(self.batch_tokens, self.batch_size)

    def n_examples(self) -> int:
        """Return N after checking every row; DataError names the first bad one."""
        rows = read_rows(self.examples, self.rows)
        for row in rows:
            row.text("first")
            row.text("second")
            if self.metric == "closeness":
                row.number("score", *self.score_range)
        return len(rows)

    def example_digests(self) -> tuple[str, ...]:
        """Return (N,) digests of both texts and the score; of all seconds too, for "retrieval"."""
        rows = read_rows(self.examples, self.rows)
        if self.metric == "closeness":
            return tuple(row.digest("first", "second", "score") for row in rows)
        pool = [content_digest(sorted({row.text("second") for row in rows}))]
        return tuple(row.digest("first", "second", beside=pool) for row in rows)

    def evaluate(self, subject: Subject, positions: IntArray | None = None) -> ScoreArray:
        """Return (n,) float32 in the order of `positions`.

        "retrieval" embeds every row's `second`, whichever examples are asked for.

        Raises:
            EvaluationError: An embedding is zero or not finite.
        """
        wanted = chosen(self.n_examples(), positions)
        rows = read_rows(self.examples, self.rows)
        subject.require(self.auto_class)
        seconds = range(len(rows)) if self.metric == "retrieval" else wanted
        texts = [rows[i].text("first") for i in wanted] + [rows[i].text("second") for i in seconds]
        unique = list(dict.fromkeys(texts))
        vectors = self._embed(subject, unique)
        place = {text: vectors[i] for i, text in enumerate(unique)}
        if not wanted.size:
            return np.zeros(0, dtype=np.float32)
        first = np.array([place[rows[i].text("first")] for i in wanted])
        own = np.array([place[rows[i].text("second")] for i in wanted])
        # Sums and no matrix product, which may round a pair differently in another batch.
        cosines = (first * own).sum(axis=1)
        if self.metric == "closeness":
            low, high = self.score_range
            gold = np.array([rows[i].number("score", low, high) for i in wanted])
            scores = 1.0 - np.abs(cosines - (gold - low) / (high - low))
        else:
            pool = np.array([place[text] for text in {row.text("second"): 0 for row in rows}])
            nearest = np.array([(pool * vector).sum(axis=1).max() for vector in first])
            scores = cosines >= nearest - SAME_WITHIN
        return checked_scores(
            np.maximum(scores, -1.0), n=len(wanted), subject=subject.name, path=self.examples
        )

    def _embed(self, subject: Subject, texts: list[str]) -> FloatArray:
        """Return (texts, width) float64 vectors of length 1."""
        tokens = subject.prepared((self, stamp(self.examples)), dict)
        limits = [m for m in (self.max_length, subject.max_tokens) if m is not None]
        settings = {"truncation": True, "max_length": min(limits)} if limits else {}
        for text in texts:
            if text not in tokens:
                tokens[text] = subject.tokenizer(text, **settings)["input_ids"]
        sequences = [tokens[text] for text in texts]
        vectors: list[FloatArray] = [np.zeros(0)] * len(texts)

        def run(shape: Shape, batch: list[int]) -> None:
            rows = [sequences[i] for i in filled(batch, subject.device)]
            ids, mask = pad(rows, subject.pad_token_id, side="right", width=shape.width)
            states = subject.hidden_states({"input_ids": ids, "attention_mask": mask})
            for row, i in enumerate(batch):
                vectors[i] = self._pool(states[row, : len(sequences[i])])

        shapes = []
        for ids in sequences:
            width = padded_width(len(ids), subject.max_tokens)
            shapes.append(Shape(width, full=width == len(ids)))
        for_each_batch(subject, shapes, self._limits, run)
        for text, vector in zip(texts, vectors, strict=True):
            length = float(np.linalg.norm(vector))
            if not np.isfinite(length) or length == 0.0:
                raise EvaluationError(
                    f"{subject.name}: the embedding of {text[:40]!r} from {self.examples} is "
                    f"{'zero' if length == 0.0 else 'not finite'}; the merged weights are "
                    "probably broken."
                )
            vector /= length
        return np.array(vectors)

    def _pool(self, states: torch.Tensor) -> FloatArray:
        """Return one (width,) float64 vector from the (T, width) states of a text's tokens."""
        found = states.double()
        if self.pooling == "mean":
            found = found.mean(dim=0)
        else:
            found = found[0 if self.pooling == "first" else -1]
        pooled: FloatArray = found.cpu().numpy().copy()
        return pooled
