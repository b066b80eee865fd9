"""Requests and answers of the OpenAI API: completions, chat, log-probabilities.

Source: the API reference of OpenAI, and vLLM's server (vllm/entrypoints/openai), whose answers
differ in details that are named where they matter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from evomerge.errors import EvaluationError
from evomerge.evaluation.http_client import Client, GarbageError

Api = Literal["completions", "chat"]
PATHS: dict[str, str] = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}

MOST_ALTERNATIVES = {"completions": 5, "chat": 20}  # what OpenAI allows; vLLM allows 20 of each
_FLOOR = -9999.0  # vLLM writes -inf so


@dataclass(frozen=True)
class Token:
    """One token of an answer.

    Attributes:
        text: What it stands for.
        logprob: Its natural log-probability; None where the server gives none (the first one).
        alternatives: Token -> log-probability of the likeliest at its place.
    """

    text: str
    logprob: float | None
    alternatives: Mapping[str, float]


@dataclass(frozen=True)
class Answer:
    """What a server generated, or read back.

    Attributes:
        text: The text, behind the prompt unless it was echoed.
        tokens: Its tokens; empty unless log-probabilities were asked for.
        offsets: Where each token begins, as the server counts characters.
    """

    text: str
    tokens: tuple[Token, ...] = ()
    offsets: tuple[int, ...] = ()


@dataclass(frozen=True)
class Asker:
    """Asks for text with one model of a server, and checks which model answered.

    Attributes:
        client: The connection.
        model: Name sent, and expected back.
        api: "completions" (a text is continued) or "chat" (a message is answered).
        request: Keys added to every request.
        exact: Whether the answer must carry the very name that was asked for; services answer
            for an alias with the name of a release.
        system: System message in front of the prompt (chat).
    """

    client: Client
    model: str
    api: Api = "completions"
    request: Mapping[str, Any] = field(default_factory=dict)
    exact: bool = True
    system: str | None = None

    def ask(
        self,
        prompt: str,
        *,
        max_tokens: int,
        stop: Sequence[str] = (),
        logprobs: int | None = None,
        echo: bool = False,
    ) -> Answer:
        """Return the greedy continuation of, or answer to, a prompt.

        Args:
            prompt: Text, or the user's message.
            max_tokens: Most tokens to generate.
            stop: Strings that end the answer.
            logprobs: Ask for the log-probability of each token and so many alternatives.
            echo: The answer begins with the prompt (completions only).

        Raises:
            ExecutorError: See `Client.ask`; also when another model answers.
            EvaluationError: The server refuses this request.
        """
        body: dict[str, Any] = {"model": self.model, "max_tokens": max_tokens, "temperature": 0}
        if self.api == "chat":
            first = [] if self.system is None else [{"role": "system", "content": self.system}]
            body["messages"] = [*first, {"role": "user", "content": prompt}]
            if logprobs is not None:
                body |= {"logprobs": True, "top_logprobs": logprobs}
        else:
            body["prompt"] = prompt
            if logprobs is not None:
                body["logprobs"] = logprobs
            if echo:
                body["echo"] = True
        if stop:
            body["stop"] = list(stop)
        body |= self.request
        return self.client.ask("POST", PATHS[self.api], body, self._read)

    def _read(self, body: Any) -> Answer:
        if not isinstance(body, dict):
            raise GarbageError(f"{str(body)[:80]!r} instead of a JSON object")
        if self.exact and body.get("model") != self.model:
            # Scores of another candidate would pass for this one's.
            raise GarbageError(f"model {body.get('model')!r} answered, not {self.model!r}")
        choices = body.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise GarbageError("no choices")
        self._count(body.get("usage"))
        choice = choices[0]
        is_chat = self.api == "chat"
        message = choice.get("message") if is_chat else choice
        text = message.get("content" if is_chat else "text") if isinstance(message, dict) else None
        if text is None and is_chat and isinstance(message, dict):
            text = ""  # a reasoning model that ran out of tokens has no content
        if not isinstance(text, str):
            raise GarbageError("a choice without text")
        logprobs = choice.get("logprobs")
        if logprobs is None:
            return Answer(text)
        try:
            return _with_chat_tokens(text, logprobs) if is_chat else _with_tokens(text, logprobs)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise GarbageError(f"malformed logprobs ({type(error).__name__}: {error})") from None

    def _count(self, usage: Any) -> None:
        counts = usage if isinstance(usage, dict) else {}
        prompt, done = (
            value if isinstance(value := counts.get(key), int) and value > 0 else 0
            for key in ("prompt_tokens", "completion_tokens")
        )
        prices = self.client.server
        cost = (prompt * prices.prompt_price + done * prices.completion_price) / 1e6
        self.client.meter.add(prompt_tokens=prompt, completion_tokens=done, cost=cost)


def _with_tokens(text: str, logprobs: Mapping[str, Any]) -> Answer:
    names, values = logprobs["tokens"], logprobs["token_logprobs"]
    tops = logprobs.get("top_logprobs") or [None] * len(names)
    tokens = tuple(
        Token(str(name), _number(value), {str(k): _sure(v) for k, v in (top or {}).items()})
        for name, value, top in zip(names, values, tops, strict=True)
    )
    offsets = tuple(int(offset) for offset in logprobs.get("text_offset") or ())
    return Answer(text, tokens, offsets)


def _with_chat_tokens(text: str, logprobs: Mapping[str, Any]) -> Answer:
    tokens = tuple(
        Token(
            str(item["token"]),
            _number(item["logprob"]),
            {str(top["token"]): _sure(top["logprob"]) for top in item.get("top_logprobs") or ()},
        )
        for item in logprobs.get("content") or ()
    )
    return Answer(text, tokens)


def _number(value: Any) -> float | None:
    return None if value is None else _sure(value)


def _sure(value: Any) -> float:
    number = float(value)
    if math.isnan(number):
        raise EvaluationError(
            "the server answered a log-probability that is NaN; the merged weights are probably "
            "broken"
        )
    return -math.inf if number <= _FLOOR else number


def option_tokens(answer: Answer, text: str, start: int) -> list[float]:
    """Return the log-probabilities of the tokens of an echoed text from a character on.

    Args:
        answer: Echo of `text`, perhaps with generated tokens behind it.
        text: What was sent.
        start: Character the option begins at.

    Raises:
        GarbageError: There are no log-probabilities of the prompt, or they do not line up.
    """
    if not answer.tokens:
        raise GarbageError("no logprobs of the prompt (`echo` is not offered; choose another)")
    # Counted in the tokens where they spell the text: special tokens in front of it shift the
    # server's own offsets, which remain for tokens that are parts of a character.
    spelt = "".join(token.text for token in answer.tokens)
    shift = spelt.find(text)
    if shift >= 0:
        begins = [-shift]
        for token in answer.tokens[:-1]:
            begins.append(begins[-1] + len(token.text))
    elif len(answer.offsets) == len(answer.tokens):
        begins = list(answer.offsets)
    else:
        raise GarbageError("the tokens of the echo do not spell the prompt")
    found = [
        token.logprob
        for token, begin in zip(answer.tokens, begins, strict=True)
        if start <= begin < len(text)
    ]
    if not found or None in found:
        raise GarbageError("no logprobs of the option's tokens")
    return [value for value in found if value is not None]
