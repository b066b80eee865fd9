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

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from evomerge.core.arrays import FloatArray
from evomerge.errors import EvaluationError
from evomerge.evaluation.batching import Limits, Shape, Tokens, for_each_batch, padded_width
from evomerge.evaluation.language import fit, token_logprobs

if TYPE_CHECKING:
    from evomerge.evaluation.subject import Subject
    from evomerge.evaluation.vocabulary import Vocabulary

Normalise = Literal["none", "token", "char"]

SHORTEST_HEADER = 16
_WIDEST_OPTIONS = 256  # tokens of options in one row, unless a single option is longer
_STEP = 8  # rows are short once their header is shared, so that padding weighs more


@dataclass(frozen=True, eq=False)
class Choice:
    """The tokens of one example.

    Attributes:
        options: Prompt and option together, one entry per option.
        starts: Of each, the first token that is scored, at least 1.
        shared: Leading tokens they have in common, none of them scored; 0: none.
    """

    options: tuple[Tokens, ...]
    starts: tuple[int, ...]
    shared: int

    def lengths(self, texts: Sequence[str], normalise: Normalise) -> NDArray[np.int64]:
        """Return (options,) what their log-likelihoods are divided by; `texts` are the options."""
        if normalise == "none":
            return np.ones(len(texts), dtype=np.int64)
        if normalise == "char":
            return np.array([len(text) for text in texts])
        pairs = zip(self.options, self.starts, strict=True)
        return np.array([len(whole) - start for whole, start in pairs])


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
        header = common_tokens([c.options[0][: max(c.shared - 1, 0)] for c in choices])
        if len(choices) < 2 or header < SHORTEST_HEADER:
            header = 0
        rows = tuple(tuple(_rows(n, choice, header)) for n, choice in enumerate(choices))
        longest = max((len(o) for c in choices for o in c.options), default=0)
        return cls(tuple(choices), choices[0].options[0][:header] if header else (), rows, longest)


def plan_choices(
    subject: Vocabulary,
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
        wholes, starts = [], []
        for text in texts:
            whole: Tokens = (*first, *subject.encode(prompt + text, special=special))
            start = min(len(context), len(whole) - 1)
            if start < 1:
                raise EvaluationError(
                    f"{subject.name}: prompt {n} and option {text!r} make a single token; "
                    "give the example a longer prompt."
                )
            what = f"option {text[:30]!r} of {n}"
            whole, start = fit(subject, whole, start, max_length, what)
            wholes.append(whole)
            starts.append(start)
        shared = min(common_tokens(wholes), *starts)
        choices.append(Choice(tuple(wholes), tuple(starts), shared))
    return ChoicePlan.of(choices)


@torch.inference_mode()
def choice_logprobs(
    subject: Subject, plan: ChoicePlan, examples: Sequence[int], limits: Limits
) -> list[FloatArray]:
    """Return the log-likelihood of every option's scored tokens together.

    Args:
        subject: A causal language model.
        plan: From `plan_choices` with a tokenizer of the same files.
        examples: (n,) which examples to score.
        limits: Size of a batch.

    Returns:
        n arrays, (options,) float64 in nats each.
    """
    table = {i: np.zeros(len(plan.choices[i].options)) for i in examples}
    rows: list[_Row] = []
    alone: list[int] = []
    shares = subject.shares_prefixes and plan.longest <= (attention_window(subject) or plan.longest)
    for i in table:
        rows.extend(plan.rows[i] if shares else ())
        alone.extend(() if shares and plan.rows[i] else (i,))
    if rows:
        _score_rows(subject, plan.header, rows, limits, table)
    if alone:
        choices = [plan.choices[i] for i in alone]
        found = token_logprobs(
            subject,
            [whole for choice in choices for whole in choice.options],
            [start for choice in choices for start in choice.starts],
            limits=limits,
        )
        sums = iter([float(tokens.sum()) for tokens in found])
        for i in alone:
            table[i][:] = [next(sums) for _ in table[i]]
    return [table[i] for i in examples]


def can_share(subject: Subject) -> bool | None:
    """Return whether the model takes a header and a mask, by a trial; None: it gives no numbers.

    The trial scores made-up tokens both ways. It has to be one with weights, since models
    without attention ignore masks in silence.
    """
    n_tokens = subject.n_token_rows or 1
    stem = tuple(7 * i % n_tokens for i in range(SHORTEST_HEADER + 4))
    tails = ((1, 3, 2), (0,), (3, 1, 0, 2))
    options = tuple((*stem, *(token % n_tokens for token in tail)) for tail in tails)
    choice = Choice(options, (len(stem),) * 3, len(stem))
    plain = token_logprobs(subject, options, choice.starts, limits=Limits())
    wanted = np.array([tokens.sum() for tokens in plain])
    if not np.isfinite(wanted).all():
        return None
    plan = ChoicePlan.of([choice, choice])  # two, so that there is a header
    found = {0: np.zeros(3), 1: np.zeros(3)}
    try:
        _score_rows(
            subject, plan.header, [row for rows in plan.rows for row in rows], Limits(), found
        )
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception:  # whatever a model raises for arguments that it does not know
        return False
    slack = torch.finfo(subject.model.dtype).eps ** 0.5 * np.maximum(1.0, np.abs(wanted))
    return bool((np.abs(found[0] - wanted) <= slack).all())


def attention_window(subject: Subject) -> int | None:
    """Return how far back every layer sees at least; None: all the way."""
    config = subject.model.config.get_text_config()
    names = ("sliding_window", "attention_chunk_size", "window_size")
    windows = [getattr(config, name, None) for name in names]
    return min((w for w in windows if isinstance(w, int) and w > 0), default=None)


def header_cache(subject: Subject, header: Tokens) -> Callable[[int], Any]:
    """Return a function B -> a transformers cache that holds the header's keys and values."""
    from transformers import DynamicCache

    filled = DynamicCache()
    if header:
        ids = torch.tensor([list(header)])
        subject.forward(
            {"input_ids": ids}, past_key_values=filled, use_cache=True, logits_to_keep=1
        )
    layers = [(layer.keys, layer.values) for layer in filled.layers]

    def for_rows(n_rows: int) -> DynamicCache:
        cache = DynamicCache(layers)
        for layer in cache.layers:
            layer.keys = layer.keys.expand(n_rows, -1, -1, -1)
            layer.values = layer.values.expand(n_rows, -1, -1, -1)
        return cache

    return for_rows


def _score_rows(
    subject: Subject,
    header: Tokens,
    rows: Sequence[_Row],
    limits: Limits,
    table: dict[int, FloatArray],
) -> None:
    """Add the log-likelihoods of `rows` to `table` (example -> options)."""
    cache = header_cache(subject, header)

    def run(shape: Shape, batch: list[int]) -> None:
        laid = [rows[i] for i in batch]
        logits = subject.forward(
            {
                "input_ids": torch.from_numpy(np.stack([row.ids for row in laid])),
                "position_ids": torch.from_numpy(np.stack([row.positions for row in laid])),
                "attention_mask": _mask(
                    torch.from_numpy(np.stack([row.segments for row in laid])),
                    len(header),
                    subject.model.dtype,
                ),
            },
            past_key_values=cache(len(batch)),
            use_cache=True,
            logits_to_keep=shape.keep,
        ).float()
        total = logits.logsumexp(-1)
        row_of = np.repeat(np.arange(len(laid)), [len(row.at) for row in laid])
        place = torch.from_numpy(np.stack([row_of, np.concatenate([row.at for row in laid])]))
        b, t = place.to(logits.device)
        tokens = torch.from_numpy(np.concatenate([row.tokens for row in laid])).to(logits.device)
        found = (logits[b, t, tokens] - total[b, t]).double().cpu().numpy()
        ends = np.cumsum([len(row.at) for row in laid])[:-1]
        for row, values in zip(laid, np.split(found, ends), strict=True):
            np.add.at(table[row.example], row.option, values)

    for_each_batch(subject, [row.shape for row in rows], limits, run)


def _mask(segments: torch.Tensor, n_header: int, dtype: torch.dtype) -> torch.Tensor:
    """Return (B, 1, T, H + T), 0 where a token may be seen, else the lowest number.

    Padding sees itself: a row of the mask that shows nothing would be NaN.
    """
    size, width = segments.shape
    there = segments >= 0
    own = segments[:, :, None] == segments[:, None, :]
    seen = (own | (segments == 0)[:, None, :]) & there[:, None, :]
    seen &= torch.ones(width, width, dtype=torch.bool).tril()
    seen |= torch.eye(width, dtype=torch.bool)
    seen = torch.cat([there[:, :, None].expand(size, width, n_header), seen], dim=2)
    hidden = torch.finfo(dtype).min
    return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, hidden)[:, None]


def _rows(example: int, choice: Choice, header: int) -> list[_Row]:
    """Return an example's options in rows of bounded width; none when nothing is shared."""
    if not choice.shared:
        return []
    parts: list[list[int]] = [[]]
    width = 0
    for option, whole in enumerate(choice.options):
        length = len(whole) - choice.shared - 1
        if parts[-1] and width + length > _WIDEST_OPTIONS:
            parts.append([])
            width = 0
        parts[-1].append(option)
        width += length
    return [_row(example, choice, header, part) for part in parts]


def _row(example: int, choice: Choice, header: int, part: Sequence[int]) -> _Row:
    shared = choice.shared
    stem = choice.options[0][header:shared]
    # An option's last token predicts nothing, so that it is no input.
    tails = [choice.options[o][shared:-1] for o in part]
    right = padded_width(sum(map(len, tails)), step=_STEP)
    left = max(padded_width(len(stem), step=_STEP), 2 * _STEP - right)
    ids = np.zeros(left + right, dtype=np.int64)
    positions, segments = np.zeros_like(ids), np.full_like(ids, -1)
    ids[left - len(stem) : left] = stem
    positions[left - len(stem) : left] = np.arange(header, shared)
    segments[left - len(stem) : left] = 0
    keep = min(left + right, max(right + 1, SHORTEST_HEADER))
    at, tokens, options = [], [], []
    begin = left
    for number, (option, tail) in enumerate(zip(part, tails, strict=True), start=1):
        where = slice(begin, begin + len(tail))
        ids[where], segments[where] = tail, number
        positions[where] = np.arange(shared, shared + len(tail))
        for t in range(choice.starts[option], len(choice.options[option])):
            place = left - 1 if t == shared else begin + t - 1 - shared
            at.append(place - (left + right - keep))
            tokens.append(choice.options[option][t])
            options.append(option)
        begin += len(tail)
    return _Row(
        example=example,
        shape=Shape(left + right, keep),
        ids=ids,
        positions=positions,
        segments=segments,
        at=np.array(at, dtype=np.int64),
        tokens=np.array(tokens, dtype=np.int64),
        option=np.array(options, dtype=np.int64),
    )


def common_tokens(sequences: Sequence[Tokens]) -> int:
    """Return how many leading tokens all sequences share."""
    ordered = sorted(tuple(tokens) for tokens in sequences)
    low, high = (ordered[0], ordered[-1]) if ordered else ((), ())
    return next((i for i, token in enumerate(low) if token != high[i]), len(low))
