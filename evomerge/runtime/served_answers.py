"""Answers of the reference server, in the form of OpenAI's API: greedy text, log-probabilities.

T tokens of a prompt, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from evomerge.core.arrays import FloatArray
from evomerge.evaluation.subject import Subject

MOST_ALTERNATIVES = 20


class RefusedError(Exception):
    """A request that is not answered, with its HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        """Args: status: HTTP status; message: what the client is told."""
        super().__init__(message)
        self.status = status


def answer_completion(subject: Subject, body: dict[str, Any]) -> dict[str, Any]:
    """Return the answer to a request to /v1/completions, without `model`.

    Raises:
        RefusedError: The request is malformed, or asks for what is not offered.
        EvaluationError: The model cannot answer.
    """
    prompt = body.get("prompt")
    if not isinstance(prompt, str) or not prompt:
        raise RefusedError(400, "prompt must be a non-empty string")
    max_tokens, stop = _settings(body)
    logprobs, echo = body.get("logprobs"), bool(body.get("echo"))
    if logprobs is None:
        text = _generate(subject, prompt, max_tokens, stop)
        return _completion(subject, prompt, text, prompt + text if echo else text, None)
    alternatives = _count(logprobs, "logprobs")
    ids, table = _next_tokens(subject, prompt, max_tokens)
    chosen = int(table[-1].argmax())
    tokens = [*ids, chosen] if echo else [chosen]
    # Row t is about token t + 1; nothing is known of the first one.
    rows: list[FloatArray | None] = [None, *table] if echo else [table[-1]]
    texts = [_text(subject, token) for token in tokens]
    offsets = np.cumsum([0, *(len(text) for text in texts)])[:-1]
    shown = {
        "tokens": texts,
        "token_logprobs": [
            None if row is None else float(row[token])
            for token, row in zip(tokens, rows, strict=True)
        ],
        "top_logprobs": [None if row is None else _top(subject, row, alternatives) for row in rows],
        "text_offset": (offsets if echo else offsets + len(prompt)).tolist(),
    }
    text = texts[-1]
    return _completion(subject, prompt, text, prompt + text if echo else text, shown)


def answer_chat(subject: Subject, body: dict[str, Any]) -> dict[str, Any]:
    """Return the answer to a request to /v1/chat/completions, without `model`; see above."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RefusedError(400, "messages must be a non-empty list")
    tokenizer = subject.tokenizer
    if not tokenizer.chat_template:
        raise RefusedError(400, "the model has no chat template; use /v1/completions")
    max_tokens, stop = _settings(body)
    try:
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template may raise anything
        raise RefusedError(400, f"the chat template refuses the messages: {error}") from error
    # The template writes the first token as text, and encoding adds it again.
    prompt = prompt.removeprefix(tokenizer.bos_token or "")
    logprobs = None
    if body.get("logprobs"):
        _, table = _next_tokens(subject, prompt, max_tokens)
        chosen = int(table[-1].argmax())
        text = _text(subject, chosen)
        top = _top(subject, table[-1], _count(body.get("top_logprobs", 0), "top_logprobs"))
        listed = [{"token": token, "logprob": value} for token, value in top.items()]
        first = {"token": text, "logprob": float(table[-1][chosen]), "top_logprobs": listed}
        logprobs = {"content": [first]}
    else:
        text = _generate(subject, prompt, max_tokens, stop)
    message = {"role": "assistant", "content": text}
    return {
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "logprobs": logprobs}],
        "usage": _usage(subject, prompt, text),
    }


def _settings(body: dict[str, Any]) -> tuple[int, tuple[str, ...]]:
    """Return (most tokens, stop strings) after checking the rest."""
    if body.get("temperature", 1) != 0:
        raise RefusedError(400, "only greedy answers are offered; set temperature to 0")
    if body.get("stream") or body.get("n", 1) != 1:
        raise RefusedError(400, "stream and n are not offered")
    max_tokens = body.get("max_tokens", 16)
    if isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 1:
        raise RefusedError(400, "max_tokens must be a positive integer")
    stop = body.get("stop") or []
    stop = [stop] if isinstance(stop, str) else stop
    if not isinstance(stop, list) or not all(isinstance(item, str) and item for item in stop):
        raise RefusedError(400, "stop must be a list of strings")
    return max_tokens, tuple(stop)


def _count(value: Any, key: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST_ALTERNATIVES:
        raise RefusedError(400, f"{key} must be an integer from 0 to {MOST_ALTERNATIVES}")
    return value


def _generate(subject: Subject, prompt: str, max_tokens: int, stop: Sequence[str]) -> str:
    answers = subject.generate([prompt], batch_size=1, max_new_tokens=max_tokens, stop=stop)
    return answers[0]


def _next_tokens(
    subject: Subject, prompt: str, max_tokens: int
) -> tuple[tuple[int, ...], FloatArray]:
    """Return the T tokens of a prompt, and (T, V) log-probabilities of what follows each."""
    if max_tokens != 1:
        raise RefusedError(400, "with logprobs, max_tokens must be 1")
    ids = subject.encode(prompt) or subject.first_tokens
    if not ids or (subject.max_tokens is not None and len(ids) > subject.max_tokens):
        raise RefusedError(
            400, f"the prompt has {len(ids)} tokens, the model takes 1 to {subject.max_tokens}"
        )
    logits = subject.logits({"input_ids": np.array([ids])})[0].astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    return ids, logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def _top(subject: Subject, row: FloatArray, count: int) -> dict[str, float]:
    """Return the likeliest tokens; of those that look alike the likelier one."""
    best = np.argsort(-row, kind="stable")[:count]
    return {_text(subject, int(token)): float(row[token]) for token in best[::-1]}


def _text(subject: Subject, token: int) -> str:
    return str(subject.tokenizer.decode([token]))


def _completion(
    subject: Subject, prompt: str, generated: str, text: str, logprobs: dict[str, Any] | None
) -> dict[str, Any]:
    return {
        "object": "text_completion",
        "choices": [{"index": 0, "text": text, "logprobs": logprobs}],
        "usage": _usage(subject, prompt, generated),
    }


def _usage(subject: Subject, prompt: str, generated: str) -> dict[str, int]:
    n_prompt = len(subject.encode(prompt))
    n_generated = len(subject.encode(generated)) - len(subject.encode(""))
    total = n_prompt + n_generated
    return {"prompt_tokens": n_prompt, "completion_tokens": n_generated, "total_tokens": total}
