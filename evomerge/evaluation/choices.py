"""Log-likelihoods of options behind prompts, the tokens they share computed once.

All examples' common first tokens (instructions, few-shot examples) are one *header*: its keys and
values are computed once per model and shared by every batch. The rest of a prompt and all of its
options then go through the model as one row of Q + O tokens, under a mask that hides the options
from each other:

    header (H) | padding, rest of the prompt (Q) | option 1, option 2, …, padding (O)

A model that has no such cache or mask (a recurrent one) is found by a trial on made-up tokens;
it is given every option as a sequence of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from evomerge.core.arrays import FloatArray
from evomerge.errors import EvaluationError
from evomerge.evaluation.batching import Limits, Shape, Tokens, for_each_batch, padded_width
from evomerge.evaluation.language import fit, token_logprobs

if TYPE_CHECKING:
    from evomerge.evaluation.subject import Subject

SHORTEST_HEADER = 16
_WIDEST_OPTIONS = 256  # tokens of options in one row, unless a single option is longer
_STEP = 8  # rows are short once their header is shared, so that padding weighs more


@dataclass(frozen=True, eq=False)
class Choice:
    """The tokens of one example.

    Attributes:
        options: Prompt and option together, one entry per option.
        start: First token that is scored, the same in all of them; at least 1.
        shared: Leading tokens all options have in common, at most `start`; 0: none.
    """

    options: tuple[Tokens, ...]
    start: int
    shared: int


@dataclass(frozen=True, eq=False)
class _Row:
    """Options of one example, laid out behind the header.

    Attributes:
        example: Number of the example.
        shape: Q + O padded tokens, of which the last O + 1 are scored.
        ids: (Q + O,) int64 tokens.
        positions: (Q + O,) int64 positions as in the unshared sequence.
        segments: (Q + O,) int64, -1 for padding, 0 for the prompt, else the option from 1 on.
        at: (n,) int64 scored tokens: place among the kept logits,
        tokens: (n,) int64 token,
        option: (n,) int64 and option of the example.
    """

    example: int
    shape: Shape
    ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    segments: NDArray[np.int64]
    at: NDArray[np.int64]
    tokens: NDArray[np.int64]
    option: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ChoicePlan:
    """Tokenised examples and how they are laid out: a function of all examples, made once.

    Attributes:
        choices: (N,) the examples.
        header: Tokens all examples begin with; empty when they are too few to be worth it.
        rows: Per example its rows; empty where its options share nothing.
        longest: Tokens of the longest prompt and option.
    """

    choices: tuple[Choice, ...]
    header: Tokens
    rows: tuple[tuple[_Row, ...], ...]
    longest: int

    @classmethod
    def of(cls, choices: Sequence[Choice]) -> ChoicePlan:
        """Lay out examples behind their common header."""
        header = _common([c.options[0][: max(c.shared - 1, 0)] for c in choices])
        if len(choices) < 2 or header < SHORTEST_HEADER:
            header = 0
        rows = tuple(tuple(_rows(n, choice, header)) for n, choice in enumerate(choices))
        longest = max((len(o) for c in choices for o in c.options), default=0)
        return cls(tuple(choices), choices[0].options[0][:header] if header else (), rows, longest)


def plan_choices(
    subject: Subject,
    prompts: Sequence[str],
    options: Sequence[Sequence[str]],
    *,
    max_length: int | None = None,
    special: bool = True,
) -> ChoicePlan:
    """Tokenise prompts and options.

    Prompt and option are joined without a separator and tokenised together; the tokens
    after those of the prompt alone are scored. Trailing spaces of the prompt count as part
    of the option, since tokenizers attach a space to the word that follows it.

    Args:
        subject: A causal language model; only its tokenizer and limits are used.
        prompts: N prompts.
        options: N sequences of options.
        max_length: Keep only the last so many tokens; None: longer ones are an error.
        special: Start with the tokenizer's usual prefix (bos).

    Raises:
        EvaluationError: A sequence is longer than the model can take, or too short to score.

    Source: lm-evaluation-harness, `_encode_pair`.
    """
    choices = []
    for n, (prompt, texts) in enumerate(zip(prompts, options, strict=True)):
        stem = subject.encode(prompt.rstrip(), special=special)
        first = () if stem else subject.first_tokens
        context = stem or first
        if not context:
            raise EvaluationError(
                f"{subject.name}: prompt {n} has no tokens and the tokenizer has no first token "
                "to start from; give every example a prompt."
            )
        made = [
            _pair(subject, n, (*first, *subject.encode(prompt + text, special=special)), text)
            for text in texts
        ]
        start = min(len(context), *(len(whole) - 1 for whole in made))
        fitted = [
            fit(subject, whole, start, max_length, f"option {text[:30]!r} of {n}")
            for whole, text in zip(made, texts, strict=True)
        ]
        choices.append(_choice([whole for whole, _ in fitted], [left for _, left in fitted]))
    return ChoicePlan.of(choices)


def _pair(subject: Subject, n: int, whole: Tokens, text: str) -> Tokens:
    if len(whole) < 2:
        raise EvaluationError(
            f"{subject.name}: prompt {n} and option {text!r} make a single token; "
            "give the example a longer prompt."
        )
    return whole
