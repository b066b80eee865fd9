"""Greedy answers of a resident causal language model.

B prompts in a batch, T tokens. Prompts are padded on the left by hand. What all prompts begin
with (instructions, few-shot examples) is computed once per model, see `choices`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from evomerge.errors import EvaluationError
from evomerge.evaluation.batching import (
    Limits,
    Shape,
    Tokens,
    filled,
    for_each_batch,
    pad,
    padded_width,
)
from evomerge.evaluation.choices import (
    SHORTEST_HEADER,
    attention_window,
    common_tokens,
    header_cache,
)
from evomerge.evaluation.language import cut_at, fit

if TYPE_CHECKING:
    from evomerge.evaluation.subject import Subject
    from evomerge.evaluation.vocabulary import Vocabulary

# Decoding reads all weights for one token per row: it gains from more rows than a prompt does.
_DECODING_ROWS = 4


@dataclass(frozen=True, eq=False)
class PromptPlan:
    """Tokenised prompts: a function of all of them, made once.

    Attributes:
        prompts: (N,) tokens.
        n_header: Leading tokens all prompts have in common; 0 when too few to be worth it.
        longest: Tokens of the longest prompt and its answer.
    """

    prompts: tuple[Tokens, ...]
    n_header: int
    longest: int


def plan_prompts(
    subject: Vocabulary,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    max_length: int | None = None,
    special: bool = True,
) -> PromptPlan:
    """Tokenise prompts.

    Args:
        subject: A causal language model; only its tokenizer and limits are used.
        prompts: N prompts.
        max_new_tokens: Most tokens to generate.
        max_length: Keep only the last so many prompt tokens; None: longer ones are an error.
        special: Start with the tokenizer's usual prefix (bos).

    Raises:
        EvaluationError: A prompt is too long or has no tokens.
    """
    room = subject.max_tokens - max_new_tokens if subject.max_tokens else None
    if room is not None and room < 1:
        raise EvaluationError(
            f"{subject.name}: max_new_tokens is {max_new_tokens} but the model only takes "
            f"{subject.max_tokens} tokens, prompt included; lower it."
        )
    encoded: list[Tokens] = []
    for n, prompt in enumerate(prompts):
        ids = subject.encode(prompt, special=special) or subject.first_tokens
        if not ids:
            raise EvaluationError(f"{subject.name}: prompt {n} has no tokens")
        encoded.append(fit(subject, ids, 0, max_length, f"prompt {n}", room)[0])
    shared = common_tokens([tokens[:-1] for tokens in encoded])
    return PromptPlan(
        tuple(encoded),
        shared if len(encoded) > 1 and shared >= SHORTEST_HEADER else 0,
        max(map(len, encoded), default=0) + max_new_tokens,
    )


@torch.inference_mode()
def generate(
    subject: Subject,
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
        subject: A causal language model.
        plan: From `plan_prompts` with a tokenizer of the same files.
        examples: (n,) which prompts to answer.
        limits: Size of a batch.
        max_new_tokens: Most tokens to generate.
        stop: Strings that end an answer and are not part of it.
        cache: Whether keys and values grow, or have their full size from the start (which lets
            transformers compile the decoding step on an accelerator).

    Raises:
        EvaluationError: The model's logits are not finite.
    """
    from transformers import GenerationConfig, StoppingCriteriaList

    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        eos_token_id=list(subject.end_token_ids) or None,
        pad_token_id=subject.pad_token_id,
        cache_implementation="static" if cache == "static" else None,
    )
    shares = plan.n_header and cache == "dynamic" and subject.shares_prefixes
    window = attention_window(subject)
    n_header = plan.n_header if shares and (window is None or plan.longest <= window) else 0
    wanted = list(dict.fromkeys(examples))
    header = plan.prompts[wanted[0]][:n_header] if wanted else ()
    shared = header_cache(subject, header) if n_header else None
    answers: dict[int, str] = {}
    rests = [plan.prompts[i][n_header:] for i in wanted]

    def run(shape: Shape, batch: list[int]) -> None:
        rows = filled(batch, subject.device)
        ids, mask = pad(
            [rests[i] for i in rows], subject.pad_token_id, side="left", width=shape.width
        )
        before = torch.tensor(header, dtype=ids.dtype).expand(len(rows), -1)
        ids = torch.cat([before, ids], dim=1)
        mask = torch.cat([torch.ones_like(before), mask], dim=1)
        width = ids.shape[1]
        output = subject.model.generate(
            input_ids=ids.to(subject.device),
            attention_mask=mask.to(subject.device),
            generation_config=settings,
            logits_processor=[_FiniteLogits(subject.name, [wanted[i] for i in rows])],
            stopping_criteria=StoppingCriteriaList([_StopStrings(subject, stop, width)])
            if stop
            else None,
            **({"past_key_values": shared(len(rows))} if shared else {}),
        )
        for row, i in enumerate(batch):
            tokens = until_end(subject, output[row, width:].tolist())
            text = subject.tokenizer.decode(tokens, skip_special_tokens=True)
            answers[wanted[i]] = cut_at(text, stop)

    shapes = []
    for rest in rests:
        width = padded_width(len(rest))
        shapes.append(Shape(width, full=width == len(rest)))
    if limits.tokens == "auto":
        limits = Limits(_DECODING_ROWS * subject.budget.auto, limits.rows)
    for_each_batch(subject, shapes, limits, run)
    return [answers[i] for i in examples]


def until_end(subject: Vocabulary, tokens: Sequence[int]) -> Sequence[int]:
    """Return an answer's tokens up to the first one that ends it."""
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
