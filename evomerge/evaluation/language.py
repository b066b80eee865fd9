"""Scoring and generating text with a resident causal language model.

B sequences in a batch, T tokens, V vocabulary. Batches are padded by hand, so that neither
the tokenizer's padding side nor the other rows of a batch decide a result.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from evomerge.core.arrays import FloatArray
from evomerge.errors import EvaluationError

if TYPE_CHECKING:
    from evomerge.evaluation.subject import Subject

Tokens = Sequence[int]
Normalise = Literal["none", "token", "char"]


@torch.inference_mode()
def token_logprobs(
    subject: Subject, sequences: Sequence[Tokens], starts: Sequence[int], *, batch_size: int
) -> list[FloatArray]:
    """Return log p(token | all tokens before it) for the tail of every sequence.

    Args:
        subject: A causal language model.
        sequences: N token sequences.
        starts: (N,) index of the first token to score, at least 1.
        batch_size: Sequences per forward pass.

    Returns:
        N arrays; the i-th is (len(sequences[i]) - starts[i],) float64.

    Source: the right-padded scoring of lm-evaluation-harness (`loglikelihood`).
    """
    results: list[FloatArray] = [np.zeros(0)] * len(sequences)
    takes_keep = "logits_to_keep" in inspect.signature(subject.model.forward).parameters
    for batch in batches([len(s) for s in sequences], batch_size):
        ids, mask = pad([sequences[i] for i in batch], subject.pad_token_id, side="right")
        width = ids.shape[1]
        # Only logits from the first scored position on are computed: with a vocabulary of
        # 150k they are most of the memory.
        first = min(starts[i] for i in batch) - 1
        keep = {"logits_to_keep": width - first} if takes_keep else {}
        logits = subject.forward(
            {"input_ids": ids, "attention_mask": mask}, use_cache=False, **keep
        )
        offset = width - logits.shape[1]
        for row, i in enumerate(batch):
            start, stop = starts[i], len(sequences[i])
            tail = logits[row, start - 1 - offset : stop - 1 - offset].float()
            gold = torch.as_tensor(sequences[i][start:stop], device=tail.device)
            picked = tail.log_softmax(-1).gather(-1, gold[:, None])[:, 0]
            results[i] = picked.double().cpu().numpy()
    return results


def option_logprobs(
    subject: Subject,
    prompts: Sequence[str],
    options: Sequence[Sequence[str]],
    *,
    batch_size: int,
    normalise: Normalise = "none",
    max_length: int | None = None,
) -> FloatArray:
    """Return the log-likelihood of every option as the continuation of its prompt.

    Prompt and option are joined without a separator and tokenised together; the tokens
    after those of the prompt alone are scored. Trailing spaces of the prompt count as part
    of the option, since tokenizers attach a space to the word that follows it.

    Args:
        subject: A causal language model.
        prompts: N prompts.
        options: N sequences of options.
        batch_size: Sequences per forward pass.
        normalise: Divide by 1, by the option's tokens, or by its characters.
        max_length: Keep only the last so many tokens; None: longer ones are an error.

    Returns:
        (N, most options) float64; -inf where a row has fewer options.

    Raises:
        EvaluationError: A sequence is longer than the model can take.

    Source: lm-evaluation-harness, `_encode_pair` and `acc_norm`.
    """
    sequences: list[Tokens] = []
    starts: list[int] = []
    for n, (prompt, choices) in enumerate(zip(prompts, options, strict=True)):
        stem = prompt.rstrip()
        context = subject.encode(stem)
        context = context or subject.first_tokens
        if not context:
            raise EvaluationError(
                f"{subject.name}: prompt {n} has no tokens and the tokenizer has no first token "
                "to start from; give every example a prompt."
            )
        for option in choices:
            whole = subject.encode(prompt + option)
            if not subject.encode(stem):
                whole = (*subject.first_tokens, *whole)
            start = min(len(context), len(whole) - 1)
            if start < 1:
                raise EvaluationError(
                    f"{subject.name}: prompt {n} and option {option!r} make a single token; "
                    "give the example a longer prompt."
                )
            whole, start = _fit(subject, whole, start, max_length, f"option {option[:30]!r} of {n}")
            sequences.append(whole)
            starts.append(start)
    logprobs = token_logprobs(subject, sequences, starts, batch_size=batch_size)
    table = np.full((len(prompts), max(map(len, options))), -np.inf)
    flat = iter(logprobs)
    for n, choices in enumerate(options):
        for o, option in enumerate(choices):
            tokens = next(flat)
            length = {"none": 1, "token": len(tokens), "char": len(option)}[normalise]
            table[n, o] = tokens.sum() / length
    return table


@torch.inference_mode()
def generate(
    subject: Subject,
    prompts: Sequence[str],
    *,
    batch_size: int,
    max_new_tokens: int,
    stop: Sequence[str] = (),
    max_length: int | None = None,
) -> list[str]:
    """Return the greedy continuation of every prompt, cut before the first stop string.

    Args:
        subject: A causal language model.
        prompts: N prompts.
        batch_size: Prompts per batch; they are padded on the left.
        max_new_tokens: Most tokens to generate.
        stop: Strings that end an answer and are not part of it.
        max_length: Keep only the last so many prompt tokens; None: longer ones are an error.

    Raises:
        EvaluationError: A prompt is too long, or the model's logits are not finite.
    """
    from transformers import GenerationConfig, StoppingCriteriaList

    room = subject.max_tokens - max_new_tokens if subject.max_tokens else None
    if room is not None and room < 1:
        raise EvaluationError(
            f"{subject.name}: max_new_tokens is {max_new_tokens} but the model only takes "
            f"{subject.max_tokens} tokens, prompt included; lower it."
        )
    encoded: list[Tokens] = []
    for n, prompt in enumerate(prompts):
        ids = subject.encode(prompt) or subject.first_tokens
        if not ids:
            raise EvaluationError(f"{subject.name}: prompt {n} has no tokens")
        encoded.append(_fit(subject, ids, 0, max_length, f"prompt {n}", room)[0])
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        eos_token_id=list(subject.end_token_ids) or None,
        pad_token_id=subject.pad_token_id,
    )
    answers = [""] * len(prompts)
    for batch in batches([len(ids) for ids in encoded], batch_size):
        ids, mask = pad([encoded[i] for i in batch], subject.pad_token_id, side="left")
        width = ids.shape[1]
        output = subject.model.generate(
            input_ids=ids.to(subject.device),
            attention_mask=mask.to(subject.device),
            generation_config=settings,
            logits_processor=[_FiniteLogits(subject.name, batch)],
            stopping_criteria=StoppingCriteriaList([_StopStrings(subject, stop, width)])
            if stop
            else None,
        )
        for row, i in enumerate(batch):
            tokens = _until_end(subject, output[row, width:].tolist())
            answers[i] = cut_at(subject.tokenizer.decode(tokens, skip_special_tokens=True), stop)
    return answers


def cut_at(text: str, stop: Sequence[str]) -> str:
    """Return `text` up to the first stop string in it."""
    ends = [found for found in (text.find(s) for s in stop) if found >= 0]
    return text[: min(ends)] if ends else text


def batches(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Yield lists of indices, longest first, so that memory peaks in the first batch."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def pad(
    sequences: Sequence[Tokens], pad_id: int, *, side: Literal["left", "right"]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (B, T) int64 token ids and their attention mask, padded to the longest."""
    width = max(map(len, sequences))
    ids: NDArray[np.int64] = np.full((len(sequences), width), pad_id, dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, tokens in enumerate(sequences):
        where = slice(0, len(tokens)) if side == "right" else slice(width - len(tokens), width)
        ids[row, where] = tokens
        mask[row, where] = 1
    return torch.from_numpy(ids), torch.from_numpy(mask)


def _fit(
    subject: Subject,
    ids: Tokens,
    start: int,
    max_length: int | None,
    what: str,
    room: int | None = None,
) -> tuple[Tokens, int]:
    """Return the last tokens that fit, and `start` counted within them."""
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


def _until_end(subject: Subject, tokens: list[int]) -> list[int]:
    for position, token in enumerate(tokens):
        if token in subject.end_token_ids:
            return tokens[:position]
    return tokens


class _StopStrings:
    """Ends a row once its decoded answer holds a stop string."""

    def __init__(self, subject: Subject, stop: Sequence[str], width: int) -> None:
        self._tokenizer, self._stop, self._width = subject.tokenizer, tuple(stop), width
        # A character takes at most four byte tokens; earlier ones were looked at before.
        self._tail = 4 * max(map(len, stop)) + 4

    def __call__(self, input_ids: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        answers = input_ids[:, max(self._width, input_ids.shape[1] - self._tail) :]
        texts = [self._tokenizer.decode(row, skip_special_tokens=True) for row in answers.tolist()]
        done = [any(s in text for s in self._stop) for text in texts]
        return torch.tensor(done, device=input_ids.device)


class _FiniteLogits:
    """Refuses NaN logits: argmax would silently turn them into token 0."""

    def __init__(self, name: str, batch: Sequence[int]) -> None:
        self._name, self._batch = name, batch

    def __call__(self, _: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        bad = torch.isnan(scores).any(-1).nonzero()
        if len(bad):
            raise EvaluationError(
                f"{self._name}: NaN logits while answering example {self._batch[int(bad[0])]}; "
                "the merged weights are probably broken."
            )
        return scores
