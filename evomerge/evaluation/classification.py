"""Classification of texts or images: is the right class the most likely one?"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evomerge.core.arrays import IntArray, ScoreArray
from evomerge.errors import ConfigError, DataError, EvaluationError
from evomerge.evaluation.evaluator import evaluator
from evomerge.evaluation.examples import (
    check_settings,
    checked_scores,
    chosen,
    content_digest,
    read_arrays,
    read_rows,
)
from evomerge.evaluation.language import batches, pad
from evomerge.evaluation.subject import Subject

METRICS = ("accuracy", "probability")
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
        batch_size: Examples per forward pass.
        max_length: Texts are cut to so many tokens; None: to what the model takes.
        rows: Half-open range of examples [start, stop); None: all.
    """

    examples: Path
    head: Path | None = None
    labels: tuple[str, ...] | None = None
    metric: str = "accuracy"
    batch_size: int = 32
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
        if self.labels is not None and len(set(self.labels)) != len(self.labels):
            raise ConfigError("classification: `labels` names a class twice.")

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
        gold = self._gold()
        wanted = chosen(len(gold), positions)
        gold = gold[wanted]
        with subject.with_head(self.head):
            subject.require(self.auto_class)
            if not wanted.size:
                return np.zeros(0, dtype=np.float32)
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
        if self.metric == "accuracy":
            scores = logits.argmax(axis=1) == gold
        else:
            shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
            scores = shifted[np.arange(len(gold)), gold] / shifted.sum(axis=1)
        return checked_scores(scores, n=len(gold), subject=subject.name, path=self.examples)

    def _logits(self, subject: Subject, wanted: IntArray) -> np.ndarray:
        """Return (n, labels) float64."""
        if self.modality == "image":
            pixels = read_arrays(self.examples, ("pixel_values", "labels"), self.rows)
            images = pixels["pixel_values"][wanted]
            parts = [
                subject.logits({"pixel_values": images[i : i + self.batch_size]})
                for i in range(0, len(wanted), self.batch_size)
            ]
            return np.concatenate(parts).astype(np.float64)
        rows = read_rows(self.examples, self.rows)
        limits = [m for m in (self.max_length, subject.max_tokens) if m is not None]
        settings = {"truncation": True, "max_length": min(limits)} if limits else {}
        texts = [rows[i].text("text") for i in wanted]
        sequences = subject.tokenizer(texts, padding=False, **settings)["input_ids"]
        if subject.model.config.pad_token_id is None:
            # Decoders with a classifier look for the last token that is not padding.
            subject.model.config.pad_token_id = subject.pad_token_id
        logits: np.ndarray | None = None
        for batch in batches([len(ids) for ids in sequences], self.batch_size):
            ids, mask = pad([sequences[i] for i in batch], subject.pad_token_id, side="right")
            part = subject.logits({"input_ids": ids, "attention_mask": mask})
            if logits is None:
                logits = np.zeros((len(wanted), part.shape[1]))
            logits[batch] = part
        return logits

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
