"""TextModel: what evaluators of text ask of a causal language model, whichever engine runs it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal

import numpy as np

from evomerge.core.arrays import FloatArray
from evomerge.evaluation.batching import Limits, Tokens
from evomerge.evaluation.choices import ChoicePlan, Normalise, plan_choices
from evomerge.evaluation.generation import PromptPlan, plan_prompts
from evomerge.evaluation.vocabulary import Vocabulary


class TextModel(Vocabulary):
    """A model in this process that scores and continues tokens.

    What becomes of text before it reaches the model (templates, tokens, truncation) is the same
    for every engine: plans are made by `choices` and `generation`.
    """

    @abstractmethod
    def require(self, auto_class: str, *, initialised: bool = True) -> None:
        """Check that the model can be scored by an evaluator made for `auto_class`.

        Args:
            auto_class: The class it must have been loaded with.
            initialised: Whether every parameter must come from a file.

        Raises:
            EvaluationError: It is half-written, of another class, or has parameters that no file
                ever set.
        """

    @abstractmethod
    def _check_clean(self) -> None:
        """Raise EvaluationError unless the weights are those of one candidate."""

    @abstractmethod
    def score_options(
        self, plan: ChoicePlan, examples: Sequence[int], limits: Limits
    ) -> list[FloatArray]:
        """Return n arrays, (options,) float64: the log-likelihood of every option, in nats.

        Args:
            plan: From `plan_choices` with a tokenizer of the same files.
            examples: (n,) which examples to score.
            limits: Size of a batch, where the engine makes none of its own.
        """

    @abstractmethod
    def continue_prompts(
        self,
        plan: PromptPlan,
        examples: Sequence[int],
        *,
        limits: Limits,
        max_new_tokens: int,
        stop: Sequence[str] = (),
        cache: Literal["dynamic", "static"] = "dynamic",
    ) -> list[str]:
        """Return the greedy continuation of prompts, cut before the first stop string.

        Args:
            plan: From `plan_prompts` with a tokenizer of the same files.
            examples: (n,) which prompts to continue.
            limits: Size of a batch, where the engine makes none of its own.
            max_new_tokens: Most tokens to generate.
            stop: Strings that end an answer and are not part of it.
            cache: See `generation.generate`.

        Raises:
            EvaluationError: The model's logits are not finite.
        """

    @abstractmethod
    def token_nll(
        self,
        sequences: Sequence[Tokens],
        *,
        batch_size: int | None = None,
        starts: Sequence[int] | None = None,
        limits: Limits | None = None,
    ) -> list[FloatArray]:
        """Return the negative log-likelihood (nats) of every token but the first.

        Args:
            sequences: N token sequences of at least two tokens.
            batch_size: Sequences per forward pass; None: as many as fit.
            starts: (N,) first token to score, at least 1; None: 1 everywhere.
            limits: Size of a batch in tokens as well, instead of `batch_size`.

        Returns:
            N arrays; the i-th is (len(sequences[i]) - starts[i],).
        """

    def option_logprobs(
        self,
        prompts: Sequence[str],
        options: Sequence[Sequence[str]],
        *,
        batch_size: int | None = None,
        normalise: Normalise = "none",
        max_length: int | None = None,
    ) -> FloatArray:
        """Return the log-likelihood of every option as the continuation of its prompt.

        Args:
            prompts: N prompts.
            options: N sequences of options, appended as they are.
            batch_size: Rows per forward pass; None: as many as fit.
            normalise: Divide by 1, by the option's tokens, or by its characters.
            max_length: Keep only the last so many tokens; None: longer ones are an error.

        Returns:
            (N, most options) float64; -inf where a row has fewer options.

        Raises:
            EvaluationError: A sequence is longer than the model can take.
        """
        self._check_clean()
        plan = plan_choices(self, prompts, options, max_length=max_length)
        found = self.score_options(plan, range(len(prompts)), Limits(rows=batch_size))
        table = np.full((len(prompts), max(map(len, options), default=0)), -np.inf)
        for n, (sums, choice) in enumerate(zip(found, plan.choices, strict=True)):
            table[n, : len(sums)] = sums / choice.lengths(options[n], normalise)
        return table

    def generate(
        self,
        prompts: Sequence[str],
        *,
        batch_size: int | None = None,
        max_new_tokens: int,
        stop: Sequence[str] = (),
        max_length: int | None = None,
    ) -> list[str]:
        """Return the greedy continuation of every prompt, cut before the first stop string.

        Args:
            prompts: N prompts.
            batch_size: Prompts per batch; None: as many as fit.
            max_new_tokens: Most tokens to generate.
            stop: Strings that end an answer and are not part of it.
            max_length: Keep only the last so many prompt tokens; None: longer ones are an error.

        Raises:
            EvaluationError: A prompt is too long, or the model's logits are not finite.
        """
        self._check_clean()
        plan = plan_prompts(self, prompts, max_new_tokens=max_new_tokens, max_length=max_length)
        return self.continue_prompts(
            plan,
            range(len(prompts)),
            limits=Limits(rows=batch_size),
            max_new_tokens=max_new_tokens,
            stop=stop,
        )
