"""Answers of a resident model to the three kinds of requests of lm-evaluation-harness.

Source: lm-evaluation-harness 0.4.13, `TemplateLM` and `HFLM`, for how text becomes tokens, what is
scored and what is cut. Differs from them: tokens once per run; tokens that requests of a document
share computed once; log-softmax in float32 and not in the model's dtype; sampled answers refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from evomerge.errors import ConfigError, EvaluationError, first_line
from evomerge.evaluation.batching import Limits, Shape, Tokens, for_each_batch, padded_width
from evomerge.evaluation.choices import Choice, ChoicePlan, choice_logprobs, common_tokens
from evomerge.evaluation.generation import PromptPlan, generate, plan_prompts
from evomerge.evaluation.subject import Subject

Place = tuple[int, int]  # document, request of that document
Scored = tuple[Tokens, int]  # tokens, the first of them that is scored

DEFAULT_ANSWER = 256  # tokens, where a task does not say
DEFAULT_CONTEXT = 2048  # tokens, of a model whose config does not say
_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_SAMPLING = ("do_sample", "temperature", "top_p", "top_k")  # mean nothing for greedy answers


@dataclass(frozen=True, eq=False)
class _Prompts:
    """Prompts that are answered alike."""

    plan: PromptPlan
    rows: Mapping[Place, int]
    max_new_tokens: int
    stop: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class AnswerPlan:
    """The requests of all documents in tokens: a function of them and the tokenizer.

    Attributes:
        kinds: Per document, the kinds of its requests.
        single: Texts scored one by one because "are these the likeliest tokens?" counts.
        choices: Texts scored together with the others of their document.
        columns: Where in `choices` a request is: row and option.
        rolling: Windows of whole texts.
        prompts: What is to be continued.
    """

    kinds: tuple[tuple[str, ...], ...]
    single: Mapping[Place, Scored]
    choices: ChoicePlan
    columns: Mapping[Place, tuple[int, int]]
    rolling: Mapping[Place, tuple[Scored, ...]]
    prompts: tuple[_Prompts, ...]

    @classmethod
    def of(cls, subject: Subject, requests: Sequence[Sequence[Any]], *, greedy: bool) -> AnswerPlan:
        """Tokenise the requests of all documents.

        Args:
            subject: Its tokenizer and the length its model takes are used.
            requests: The harness's, per document.
            greedy: Whether the second half of a log-likelihood's answer is looked at.

        Raises:
            ConfigError: A request wants sampled answers, or a setting that is not supported.
            EvaluationError: A request has nothing to score, or does not fit into the model.
        """
        by_kind: dict[str, dict[Place, Any]] = {}
        for document, group in enumerate(requests):
            for k, request in enumerate(group):
                by_kind.setdefault(request.request_type, {})[document, k] = request.args
        scored = {
            place: _scored(subject, *_pair(subject, *args[:2]), f"request {place[1]} of {place[0]}")
            for place, args in by_kind.pop("loglikelihood", {}).items()
        }
        rolling = {
            place: _windows(subject, args[0])
            for place, args in by_kind.pop("loglikelihood_rolling", {}).items()
        }
        prompts = _prompts(subject, by_kind.pop("generate_until", {}))
        if by_kind:
            raise ConfigError(f"lm_eval: requests of the kind {min(by_kind)!r} are not supported.")
        choices, columns = _choices({} if greedy else scored)
        return cls(
            kinds=tuple(tuple(request.request_type for request in group) for group in requests),
            single=scored if greedy else {},
            choices=choices,
            columns=columns,
            rolling=rolling,
            prompts=prompts,
        )

    def answer(
        self, subject: Subject, documents: Sequence[int], limits: Limits
    ) -> dict[Place, Any]:
        """Return what the model answers to every request of some documents.

        Raises:
            EvaluationError: The model's logits are not finite.
        """
        places = [(d, k) for d in documents for k in range(len(self.kinds[d]))]
        answers: dict[Place, Any] = {}
        single = [place for place in places if place in self.single]
        scored = [self.single[place] for place in single]
        answers.update(zip(single, _greedy_scores(subject, scored, limits), strict=True))
        shared = [place for place in places if place in self.columns]
        rows = sorted({self.columns[place][0] for place in shared})
        table = dict(zip(rows, choice_logprobs(subject, self.choices, rows, limits), strict=True))
        for place in shared:
            row, option = self.columns[place]
            answers[place] = (float(table[row][option]), False)
        answers.update(self._rolling(subject, places, limits))
        for prompts in self.prompts:
            own = [place for place in places if place in prompts.rows]
            if own:
                texts = generate(
                    subject,
                    prompts.plan,
                    [prompts.rows[place] for place in own],
                    limits=limits,
                    max_new_tokens=prompts.max_new_tokens,
                    stop=prompts.stop,
                )
                answers.update(zip(own, texts, strict=True))
        for place, value in answers.items():
            number = value[0] if isinstance(value, tuple) else value
            if not isinstance(number, str) and not np.isfinite(number):
                raise EvaluationError(
                    f"{subject.name}: the log-likelihood of request {place[1]} of document "
                    f"{place[0]} is not finite; the merged weights are probably broken."
                )
        return answers

    def _rolling(
        self, subject: Subject, places: Sequence[Place], limits: Limits
    ) -> dict[Place, float]:
        windows = [(p, window) for p in places for window in self.rolling.get(p, ())]
        found = subject.token_nll(
            [tokens for _, (tokens, _) in windows],
            starts=[start for _, (_, start) in windows],
            limits=limits,
        )
        totals: dict[Place, float] = {}
        for (place, _), values in zip(windows, found, strict=True):
            totals[place] = totals.get(place, 0.0) - float(values.sum())
        return totals


def chat_template(subject: Subject) -> Callable[..., str]:
    """Return the function that renders a list of messages with the tokenizer's template.

    Raises:
        EvaluationError: The tokenizer has no template. The function returned raises it, too,
            where the template is broken or refuses a message.
    """
    from jinja2.exceptions import TemplateError

    if not subject.tokenizer.chat_template:
        raise EvaluationError(
            f"{subject.name}: the tokenizer in {subject.folder} has no chat template; remove "
            "`apply_chat_template`, or give the base model a tokenizer that has one."
        )

    def render(messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        options = {
            "tokenize": False,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": not add_generation_prompt,
        }
        apply = partial(subject.tokenizer.apply_chat_template, **options)
        try:
            try:
                return str(apply(messages))
            except TemplateError:  # templates without a system role refuse one
                return str(apply([one for one in messages if one["role"] != "system"]))
        except Exception as error:  # what a template computes can fail in any way
            raise EvaluationError(
                f"{subject.name}: the chat template of {subject.folder} cannot be filled in "
                f"({type(error).__name__}: {first_line(error)}); correct it, or remove "
                "`apply_chat_template`."
            ) from error

    return render


def check_generation(settings: Mapping[str, Any]) -> None:
    """Raise ConfigError for `generation_kwargs` that are not those of a greedy answer."""
    samples = settings.get("do_sample")
    if samples or (samples is None and float(settings.get("temperature") or 0) > 0):
        raise ConfigError(
            "lm_eval: the task samples its answers, so that a candidate would not get the same "
            "scores twice; set `gen_kwargs: {do_sample: false}`."
        )
    unknown = sorted({*settings} - {"until", *_LIMITS, *_SAMPLING})
    if unknown:
        raise ConfigError(
            f"lm_eval: generation setting {unknown[0]!r} of the task is not supported. Supported: "
            f"until, {', '.join(_LIMITS)}."
        )


def _prompts(subject: Subject, requests: Mapping[Place, Any]) -> tuple[_Prompts, ...]:
    groups: dict[tuple[int, tuple[str, ...], bool], dict[Place, str]] = {}
    for place, (text, settings) in requests.items():
        check_generation(settings)
        limits = [settings[key] for key in _LIMITS if settings.get(key) is not None]
        until = settings.get("until") or ()
        stop = (until,) if isinstance(until, str) else tuple(until)
        max_new_tokens = int(limits[0]) if limits else DEFAULT_ANSWER
        key = (max_new_tokens, tuple(s for s in stop if s), _takes_start(subject, text))
        groups.setdefault(key, {})[place] = text
    found = []
    for (max_new_tokens, stop, special), texts in groups.items():
        room = subject.max_tokens - max_new_tokens if subject.max_tokens else None
        plan = plan_prompts(
            subject,
            list(texts.values()),
            max_new_tokens=max_new_tokens,
            max_length=room,
            special=special,
        )
        rows = {place: row for row, place in enumerate(texts)}
        found.append(_Prompts(plan, rows, max_new_tokens, stop))
    return tuple(found)


def _choices(
    scored: Mapping[Place, Scored],
) -> tuple[ChoicePlan, dict[Place, tuple[int, int]]]:
    """Lay out the texts of each document, equal ones once so that they tie exactly."""
    groups: dict[int, dict[Scored, int]] = {}
    rows: dict[int, int] = {}
    columns: dict[Place, tuple[int, int]] = {}
    for place, item in scored.items():
        group = groups.setdefault(place[0], {})
        option = group.setdefault(item, len(group))
        columns[place] = (rows.setdefault(place[0], len(rows)), option)
    choices = []
    for group in groups.values():
        wholes, starts = zip(*group, strict=True)
        choices.append(Choice(wholes, starts, min(common_tokens(wholes), *starts)))
    return ChoicePlan.of(choices), columns


def _windows(subject: Subject, text: str) -> tuple[Scored, ...]:
    """Return a whole text in windows that do not overlap, each behind one token of context."""
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    if not subject.first_tokens:
        raise EvaluationError(f"{subject.name}: the tokenizer has no first token to start from")
    # A start token of the tokenizer's own is scored like the rest, as the harness does.
    windows = get_rolling_token_windows(
        token_list=list(_encode(subject, text)),
        prefix_token=subject.first_tokens[-1],
        max_seq_len=subject.max_tokens or DEFAULT_CONTEXT,
        context_len=1,
    )
    pairs = [make_disjoint_window(window) for window in windows]
    return tuple(_scored(subject, given, tail, f"text {text[:30]!r}") for given, tail in pairs)


def _pair(subject: Subject, context: str, continuation: str) -> tuple[Tokens, Tokens]:
    """Return the tokens of a context and of what follows it, tokenised together."""
    if not context:
        start = subject.first_tokens[-1:]
        tail = subject.encode(continuation, special=False)
        return (tail[:1], tail[1:]) if tail[:1] == start else (start, tail)
    # Tokenizers attach a space to the word that follows it.
    given = _encode(subject, context.rstrip())
    return given, _encode(subject, context + continuation)[len(given) :]


def _encode(subject: Subject, text: str) -> Tokens:
    return subject.encode(text, special=_takes_start(subject, text))


def _takes_start(subject: Subject, text: str) -> bool:
    """Return whether a text still needs the start token; chat templates write it out."""
    start = subject.first_tokens[-1:]
    return not (start and text.startswith(subject.tokenizer.decode(list(start))))


def _scored(subject: Subject, given: Tokens, tail: Tokens, what: str) -> Scored:
    """Return both together, cut on the left to what the model takes."""
    limit = subject.max_tokens or DEFAULT_CONTEXT
    if not given or not tail or len(tail) > limit:
        problem = "is too long" if given and tail else "is empty"
        raise EvaluationError(
            f"{subject.name}: {what}: its context or continuation {problem} ({len(given)} and "
            f"{len(tail)} tokens, the model takes {limit}); change the task's documents."
        )
    # The last token predicts nothing, so that it is no input.
    whole = (*given, *tail)[-(limit + 1) :]
    return whole, len(whole) - len(tail)


@torch.inference_mode()
def _greedy_scores(
    subject: Subject, scored: Sequence[Scored], limits: Limits
) -> list[tuple[float, bool]]:
    """Return (log-likelihood, whether every token is the likeliest) of each tail."""
    results: list[tuple[float, bool]] = [(0.0, False)] * len(scored)
    keeps = "logits_to_keep" in inspect.signature(subject.model.forward).parameters
    shapes = []
    for whole, start in scored:
        width = padded_width(len(whole) - 1, subject.max_tokens)
        shapes.append(Shape(width, min(width, padded_width(width - start + 1))))

    def run(shape: Shape, batch: list[int]) -> None:
        ids = np.zeros((len(batch), shape.width), dtype=np.int64)
        for row, i in enumerate(batch):
            tokens = scored[i][0][:-1]
            ids[row] = tokens[0]  # padding on the right, which no token sees
            ids[row, : len(tokens)] = tokens
        keep = {"logits_to_keep": shape.keep} if keeps else {}
        logits = subject.forward({"input_ids": torch.from_numpy(ids)}, use_cache=False, **keep)
        offset = shape.width - logits.shape[1]
        for row, i in enumerate(batch):
            whole, start = scored[i]
            tail = logits[row, start - 1 - offset : len(whole) - 1 - offset].float()
            gold = torch.as_tensor(whole[start:], device=tail.device)
            logprobs = tail.gather(-1, gold[:, None])[:, 0] - tail.logsumexp(-1)
            results[i] = (float(logprobs.double().sum()), bool((tail.argmax(-1) == gold).all()))

    for_each_batch(subject, shapes, limits, run)
    return results
