"""Candidates on a server: what evaluators score when this process holds no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from evomerge.core.arrays import FloatArray
from evomerge.core.recipe import Recipe
from evomerge.errors import EvaluationError, UnavailableError
from evomerge.evaluation.http_client import Client, GarbageError
from evomerge.evaluation.language import cut_at
from evomerge.evaluation.openai_api import MOST_ALTERNATIVES, Asker, option_tokens
from evomerge.evaluation.server import ServedCandidate

if TYPE_CHECKING:
    from evomerge.evaluation.text_model import TextModel

UNLISTED = -1e9  # finite: an option that is not among the likeliest tokens is no broken model


@dataclass(frozen=True)
class Installed:
    """A candidate that a server holds.

    Attributes:
        version: Name it is asked by, and answers by.
        weights_digest: Digest of its merged tensors; "" where the server does not say.
    """

    version: str
    weights_digest: str = ""


class Install(Protocol):
    """One way to get candidates onto a server."""

    def __call__(self, recipe: Recipe) -> Installed:
        """Install a candidate in place of the one before it.

        Raises:
            UnavailableError: The server cannot be used.
            EvaluationError: This candidate cannot be installed.
        """
        ...


class ServedModel:
    """The candidate a server holds. The worker installs, evaluators take a `ServedSubject`.

    Attributes:
        name: For messages.
        client: The connection.
    """

    def __init__(self, client: Client, install: Install) -> None:
        """Args: install: How candidates get there."""
        self.name = "candidate"
        self.client = client
        self._install = install
        self._installed: Installed | None = None

    def install(self, recipe: Recipe) -> str:
        """Install a candidate; return the digest of its merged tensors, "" if it is not known."""
        self._installed = None
        self._installed = self._install(recipe)
        return self._installed.weights_digest

    @property
    def version(self) -> str:
        """Version of the installed candidate; EvaluationError when there is none."""
        if self._installed is None:
            raise EvaluationError(f"{self.name}: no candidate is installed on the server")
        return self._installed.version


@dataclass(frozen=True)
class ServedSubject:
    """What text evaluators ask of a model, answered by a server.

    The methods are those of `evaluation.subject.Subject` with the same arguments; the server
    batches, so batch sizes are passed over.

    Attributes:
        model: The candidate.
        how: How it is asked.
    """

    model: ServedModel
    how: ServedCandidate

    @property
    def name(self) -> str:
        """For messages."""
        return self.model.name

    def require(self, auto_class: str, *, initialised: bool = True) -> None:  # noqa: ARG002
        """Check that a candidate is installed."""
        _ = self.model.version

    def generate(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int,
        stop: Sequence[str] = (),
        batch_size: int = 1,  # noqa: ARG002
        max_length: int | None = None,  # noqa: ARG002
    ) -> list[str]:
        """Return the greedy continuation of every prompt, cut before the first stop string."""
        asker = self._asker()

        def answer(prompt: str) -> str:
            text = asker.ask(prompt, max_tokens=max_new_tokens, stop=stop).text
            return cut_at(text, stop)

        return self.model.client.map(answer, prompts)

    def option_logprobs(
        self,
        prompts: Sequence[str],
        options: Sequence[Sequence[str]],
        *,
        normalise: str = "none",
        batch_size: int = 1,  # noqa: ARG002
        max_length: int | None = None,  # noqa: ARG002
    ) -> FloatArray:
        """Return (N, most options) float64 log-likelihoods; -inf where a row has fewer options.

        ``echo`` asks once per option for the log-probabilities of prompt and option, and adds up
        those of the tokens that begin behind the prompt (its trailing spaces belong to the
        option). ``first_token`` asks once per prompt for the likeliest next tokens, and gives each
        option that of the likeliest token it begins with, -1e9 when none of them is: cruder, and
        all that chat servers offer.
        """
        table = np.full((len(prompts), max(map(len, options))), -np.inf)
        if self.how.choose == "first_token":
            rows = list(zip(prompts, options, strict=True))
            for n, found in enumerate(self.model.client.map(self._first_tokens, rows)):
                table[n, : len(found)] = found
            return table
        flat = [(n, o, text) for n, row in enumerate(options) for o, text in enumerate(row)]
        found = self.model.client.map(
            lambda item: self._echoed(prompts[item[0]], item[2], normalise), flat
        )
        for (n, o, _), value in zip(flat, found, strict=True):
            table[n, o] = value
        return table

    def _asker(self) -> Asker:
        how = self.how
        version = self.model.version
        return Asker(self.model.client, version, how.api, how.request, system=how.system_prompt)

    def _echoed(self, prompt: str, option: str, normalise: str) -> float:
        text = prompt + option
        answer = self._asker().ask(text, max_tokens=1, logprobs=1, echo=True)
        try:
            tokens = option_tokens(answer, text, len(prompt.rstrip()))
        except GarbageError as error:
            raise UnavailableError(
                f"{self.name}: option {option[:30]!r}: {error}. Set `choose: first_token` where "
                "the server has no `echo`"
            ) from None
        length = {"none": 1, "token": len(tokens), "char": len(option)}[normalise]
        return sum(tokens) / length

    def _first_tokens(self, row: tuple[str, Sequence[str]]) -> list[float]:
        prompt, options = row
        answer = self._asker().ask(prompt, max_tokens=1, logprobs=MOST_ALTERNATIVES[self.how.api])
        if not answer.tokens:
            raise UnavailableError(
                f"{self.name}: the server gives no logprobs, which multiple choice needs"
            )
        first = answer.tokens[0]
        likeliest = dict(first.alternatives)
        if first.logprob is not None:
            likeliest.setdefault(first.text, first.logprob)
        return [
            max(
                (
                    value
                    for token, value in likeliest.items()
                    if token.strip() and option.strip().startswith(token.strip())
                ),
                default=UNLISTED,
            )
            for option in options
        ]


def text_subject(
    subject: TextModel | ServedModel, candidate: ServedCandidate | None
) -> TextModel | ServedSubject:
    """Return what evaluators of text ask: the resident model, or the one on a server."""
    if candidate is None:
        assert not isinstance(subject, ServedModel)  # built so by `config.workers.worker_of`
        return subject
    if not isinstance(subject, ServedModel):
        raise EvaluationError(
            f"{subject.name}: is a resident model, and the evaluator asks a server; build its "
            "worker with `config.workers.worker_of`"
        )
    return ServedSubject(subject, candidate)
