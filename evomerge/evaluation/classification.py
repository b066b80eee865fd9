"""Classification of texts or images: is the right class the most likely one?"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from evomerge.core.arrays import BoolArray, IntArray, ScoreArray
from evomerge.errors import ConfigError, DataError, EvaluationError
from evomerge.evaluation.batching import Limits, Shape, filled, for_each_batch, pad, padded_width
from evomerge.evaluation.evaluator import evaluator
from evomerge.evaluation.examples import (
    check_settings,
    checked_scores,
    chosen,
    content_digest,
    read_arrays,
    read_rows,
    stamp,
)
from evomerge.evaluation.margins import margin_of
from evomerge.evaluation.subject import Subject

METRICS = ("accuracy", "probability")
IMAGES_PER_BATCH = 32
MODALITIES = {".jsonl": "text", ".npz": "image"}


@evaluator("classification")
@dataclass(frozen=True, kw_only=True)
class Classification:
    """Score 1.0 where the gold class has the highest logit, or its probability.

    Attributes:
        examples: JSONL rows with `text` and `label`, or npz with `pixel_values`
            (N, C, H, W) float and `labels` (N,) integer.
        head: Safetensors file with this task's classifier, for models without one of their own.
        labels: Class names in the order of the model's outputs, when rows name classes.
        metric: "accuracy" (0 or 1) or "probability" of the gold class.
        batch_tokens: Tokens of text per forward pass; "auto": what the device takes, halved when
            its memory runs out.
        batch_size: Most examples per forward pass; None: 32 images, or as many texts as
            `batch_tokens` allow.
        max_length: Texts are cut to so many tokens; None: to what the model takes.
        rows: Half-open range of examples [start, stop); None: all.
    """

    examples: Path
    head: Path | None = None
    labels: tuple[str, ...] | None = None
    metric: str = "accuracy"
    batch_tokens: int | Literal["auto"] = "auto"
    batch_size: int | None = None
    max_length: int | None = None
    rows: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        check_settings(
            "classification",
            rows=self.rows,
            positive={"batch_size": self.batch_size, "max_length": self.max_length},
            choices={"metric": (self.metric, METRICS)},
        )
        if Path(self.examples).suffix not in MODALITIES:
            raise ConfigError(
                f"classification: examples is {self.examples}; expected .jsonl (texts) or "
                ".npz (images)."
            )
        _ = self._limits
        if self.labels is not None and len(set(self.labels)) != len(self.labels):
            raise ConfigError("classification: `labels` names a class twice.")

    @property
    def _limits(self) -> Limits:
        if self.modality == "image":
            return Limits(rows=self.batch_size or IMAGES_PER_BATCH)
        return Limits(self.batch_tokens, self.batch_size)

    @property
    def modality(self) -> str:
        """Kind of input, "text" or "image", by the suffix of `examples`."""
        return MODALITIES[Path(self.examples).suffix]

    @property
    def auto_class(self) -> str:
        """The transformers Auto class of the models it can score."""
        if self.modality == "image":
            return "AutoModelForImageClassification"
        return "AutoModelForSequenceClassification"

    def n_examples(self) -> int:
        """Return N after checking every example; DataError names the first bad one."""
        if self.head is not None and not Path(self.head).is_file():
            raise DataError(f"{self.head}: no such head file; check `head:`.")
        return len(self._gold())

    def example_digests(self) -> tuple[str, ...]:
        """Return (N,) digests of text and label, or of the pixels and the class index."""
        if self.modality == "text":
            rows = read_rows(self.examples, self.rows)
            return tuple(row.digest("text", "label") for row in rows)
        arrays = read_arrays(self.examples, ("pixel_values", "labels"), self.rows)
        pixels = np.ascontiguousarray(arrays["pixel_values"])
        kind = [str(pixels.dtype), pixels.shape[1:]]
        return tuple(
            content_digest([*kind, hashlib.sha256(image).hexdigest(), int(label)])
            for image, label in zip(pixels, arrays["labels"], strict=True)
        )

    def evaluate(self, subject: Subject, positions: IntArray | None = None) -> ScoreArray:
        """Return (n,) float32: 0 or 1 for accuracy, [0, 1] for probability.

        Raises:
            EvaluationError: Logits are not finite, or a gold class has no output.
        """
        if self.has_margins:
            return self.evaluate_with_margins(subject, positions)[0]
        wanted = chosen(len(self._gold()), positions)
        logits, gold = self._checked_logits(subject, wanted), self._gold()[wanted]
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        scores = shifted[np.arange(len(gold)), gold] / shifted.sum(axis=1)
        return checked_scores(scores, n=len(wanted), subject=subject.name, path=self.examples)

    @property
    def has_margins(self) -> bool:
        """Whether an example is right or wrong."""
        return self.metric == "accuracy"

    def evaluate_with_margins(
        self, subject: Subject, positions: IntArray | None = None
    ) -> tuple[ScoreArray, ScoreArray]:
        """Return 0 or 1, and by how much the gold logit leads; see `GivesMargins`.

        Raises:
            EvaluationError: Logits are not finite, or a gold class has no output.
        """
        wanted = chosen(len(self._gold()), positions)
        logits, gold = self._checked_logits(subject, wanted), self._gold()[wanted]
        right = self.marks(logits.argmax(axis=1).tolist(), wanted)
        scores = checked_scores(right, n=len(wanted), subject=subject.name, path=self.examples)
        margins = [margin_of(row, label) for row, label in zip(logits, gold, strict=True)]
        return scores, np.array(margins, np.float32)

    def why_no_vote(self) -> str:
        """Return "" where an example is right or wrong."""
        return "" if self.metric == "accuracy" else f"it is scored by {self.metric}"

    def answers(self, subject: Subject, positions: IntArray) -> list[int]:
        """Return (n,) the most likely class of each example.

        Raises:
            EvaluationError: Logits are not finite, or a gold class has no output.
        """
        classes: list[int] = self._checked_logits(subject, positions).argmax(axis=1).tolist()
        return classes

    def marks(self, answers: Sequence[int], positions: IntArray) -> ScoreArray:
        """Return (n,) 1.0 where a class is the gold one, else 0.0."""
        is_right: BoolArray = np.array(answers, dtype=np.int64) == self._gold()[positions]
        return is_right.astype(np.float32)

    def _checked_logits(self, subject: Subject, wanted: IntArray) -> np.ndarray:
        """Return (n, labels) float64, all finite, with an output for every gold class."""
        gold = self._gold()[wanted]
        with subject.with_head(self.head):
            subject.require(self.auto_class)
            logits = self._logits(subject, wanted)
        in_file = wanted + (self.rows[0] if self.rows else 0)
        bad = np.flatnonzero(~np.isfinite(logits).all(axis=1))
        if bad.size:
            raise EvaluationError(
                f"{subject.name}: logits on {self.examples} are not finite, the first for example "
                f"{in_file[bad[0]]}; the merged weights are probably broken."
            )
        outside = np.flatnonzero(gold >= logits.shape[1])
        if outside.size:
            raise EvaluationError(
                f"{subject.name}: example {in_file[outside[0]]} of {self.examples} has class "
                f"{gold[outside[0]]}, but the model has {logits.shape[1]} outputs; give `head:`."
            )
        return logits

    def _logits(self, subject: Subject, wanted: IntArray) -> np.ndarray:
        """Return (n, labels) float64."""
        logits: dict[int, np.ndarray] = {}
        if self.modality == "image":
            pixels = read_arrays(self.examples, ("pixel_values", "labels"), self.rows)
            images = pixels["pixel_values"]

            def run_images(_: Shape, batch: list[int]) -> None:
                rows = wanted[filled(batch, subject.device)]
                found = subject.logits({"pixel_values": images[rows]})
                for row, i in enumerate(batch):
                    logits[i] = found[row]

            for_each_batch(subject, [Shape(1)] * len(wanted), self._limits, run_images)
        else:
            sequences = self._tokens(subject)
            if subject.model.config.pad_token_id is None:
                # Decoders with a classifier look for the last token that is not padding.
                subject.model.config.pad_token_id = subject.pad_token_id

            def run_texts(shape: Shape, batch: list[int]) -> None:
                rows = [sequences[wanted[i]] for i in filled(batch, subject.device)]
                ids, mask = pad(rows, subject.pad_token_id, side="right", width=shape.width)
                found = subject.logits({"input_ids": ids, "attention_mask": mask})
                for row, i in enumerate(batch):
                    logits[i] = found[row]

            shapes = []
            for i in wanted:
                length = len(sequences[i])
                width = padded_width(length, subject.max_tokens)
                shapes.append(Shape(width, full=width == length))
            for_each_batch(subject, shapes, self._limits, run_texts)
        if not logits:
            return np.zeros((0, 1))
        return np.stack([logits[i] for i in range(len(wanted))]).astype(np.float64)

    def _tokens(self, subject: Subject) -> list[list[int]]:
        """Return the tokens of every text, cut to what the model takes."""

        def make() -> list[list[int]]:
            texts = [row.text("text") for row in read_rows(self.examples, self.rows)]
            limits = [m for m in (self.max_length, subject.max_tokens) if m is not None]
            settings = {"truncation": True, "max_length": min(limits)} if limits else {}
            tokens: list[list[int]] = subject.tokenizer(texts, padding=False, **settings)[
                "input_ids"
            ]
            return tokens

        return subject.prepared((self, stamp(self.examples)), make)

    def _gold(self) -> IntArray:
        """Return (N,) int64 class indices, every example checked."""
        if self.modality == "text":
            rows = read_rows(self.examples, self.rows)
            for row in rows:
                row.text("text")
            return np.array([row.label("label", self.labels) for row in rows], dtype=np.int64)
        arrays = read_arrays(self.examples, ("pixel_values", "labels"), self.rows)
        pixels, gold = arrays["pixel_values"], arrays["labels"]
        if pixels.ndim != 4 or pixels.dtype.kind != "f":
            raise DataError(
                f"{self.examples}: pixel_values is {pixels.dtype} {pixels.shape}, expected float "
                "(N, C, H, W); normalise images as in training."
            )
        if not np.isfinite(pixels).all():
            bad = int(np.argwhere(~np.isfinite(pixels))[0][0])
            raise DataError(f"{self.examples}: pixel_values of example {bad} are not finite.")
        if gold.ndim != 1 or gold.dtype.kind not in "iu":
            raise DataError(
                f"{self.examples}: labels is {gold.dtype} {gold.shape}, expected integer (N,) "
                "class indices."
            )
        top = len(self.labels) if self.labels is not None else None
        outside = np.flatnonzero((gold < 0) | (top is not None and gold >= (top or 0)))
        if outside.size:
            raise DataError(
                f"{self.examples}: label of example {outside[0]} is {gold[outside[0]]}, expected "
                f"0 {'or more' if top is None else f'to {top - 1}'}."
            )
        return gold.astype(np.int64)
