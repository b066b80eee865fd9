"""Log-likelihoods of token sequences under a resident causal language model.

B sequences in a batch, T tokens, V vocabulary. Batches are padded by hand, so that neither
the tokenizer's padding side nor the other rows of a batch decide a result.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from evomerge.core.arrays import FloatArray
from evomerge.errors import EvaluationError
from evomerge.evaluation.batching import Limits, Shape, Tokens, for_each_batch, padded_width

if TYPE_CHECKING:
    from evomerge.evaluation.subject import Subject
    from evomerge.evaluation.vocabulary import Vocabulary


@torch.inference_mode()
def token_logprobs(
    subject: Subject, sequences: Sequence[Tokens], starts: Sequence[int], *, limits: Limits
) -> list[FloatArray]:
    """Return log p(token | all tokens before it) for the tail of every sequence.

    Args:
        subject: A causal language model.
        sequences: N token sequences of at least two tokens.
        starts: (N,) index of the first token to score, at least 1.
        limits: Size of a batch.

    Returns:
        N arrays; the i-th is (len(sequences[i]) - starts[i],) float64.

    Source: the right-padded scoring of lm-evaluation-harness (`loglikelihood`).
    """
    results: list[FloatArray] = [np.zeros(0)] * len(sequences)
    keeps = "logits_to_keep" in inspect.signature(subject.model.forward).parameters
    shapes = [
        _tail_shape(len(tokens) - 1, start, subject.max_tokens)
        for tokens, start in zip(sequences, starts, strict=True)
    ]

    def run(shape: Shape, batch: list[int]) -> None:
        # Padding on the right needs no mask: no token sees what follows it. Its id is one of the
        # row's own, because transformers warns of padding tokens without a mask.
        ids = np.zeros((len(batch), shape.width), dtype=np.int64)
        for row, i in enumerate(batch):
            tokens = sequences[i][:-1]  # the last one predicts nothing
            ids[row] = tokens[0]
            ids[row, : len(tokens)] = tokens
        keep = {"logits_to_keep": shape.keep} if keeps else {}
        logits = subject.forward({"input_ids": torch.from_numpy(ids)}, use_cache=False, **keep)
        offset = shape.width - logits.shape[1]
        for row, i in enumerate(batch):
            start, stop = starts[i], len(sequences[i])
            tail = logits[row, start - 1 - offset : stop - 1 - offset].float()
            gold = torch.as_tensor(sequences[i][start:stop], device=tail.device)
            picked = tail.gather(-1, gold[:, None])[:, 0] - tail.logsumexp(-1)
            results[i] = picked.double().cpu().numpy()

    for_each_batch(subject, shapes, limits, run)
    return results


def _tail_shape(length: int, start: int, limit: int | None) -> Shape:
    """Return the shape of `length` tokens whose logits count from the one before `start` on."""
    width = padded_width(length, limit)
    return Shape(width, min(width, padded_width(width - start + 1)))


def cut_at(text: str, stop: Sequence[str]) -> str:
    """Return `text` up to the first stop string in it."""
    ends = [found for found in (text.find(s) for s in stop) if found >= 0]
    return text[: min(ends)] if ends else text


def fit(
    subject: Vocabulary,
    ids: Tokens,
    start: int,
    max_length: int | None,
    what: str,
    room: int | None = None,
) -> tuple[Tokens, int]:
    """Return the last tokens that fit, and `start` counted within them.

    Args:
        subject: Knows what its model takes.
        ids: Tokens.
        start: First token that has to stay, with at least one before it; 0: none has to.
        max_length: Most tokens to keep; None: all.
        what: Name of the tokens, for messages.
        room: Most tokens the model takes; None: all it can.

    Raises:
        EvaluationError: They do not fit.
    """
    if max_length is not None and len(ids) > max_length:
        dropped = len(ids) - max_length
        if start and start - dropped < 1:
            raise EvaluationError(
                f"{subject.name}: {what} alone is longer than max_length={max_length} tokens"
            )
        ids, start = ids[dropped:], max(start - dropped, 0)
    limit = subject.max_tokens if room is None else room
    if limit is not None and len(ids) > limit:
        raise EvaluationError(
            f"{subject.name}: {what} is {len(ids)} tokens, the model has room for {limit}; "
            "shorten the example, or set `max_length` to keep only its last tokens."
        )
    return ids, start
