"""Batches whose make-up cannot be seen in the scores.

B rows in a batch, T tokens. An example is always computed at the same padded width, which
follows from its own length alone; only the number of rows beside it varies. Matrix products of
PyTorch's CPU build give a row the same bits whatever the other rows, once there are a few of
them: measured with oneMKL 2024.2, from 4 rows on with one thread and from 12 with two. So scores
in float32 are equal bit for bit in any batch on a CPU; other devices pick their kernels by B, and
agree within rounding (`SAME_WITHIN`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from evomerge.errors import ConfigError

if TYPE_CHECKING:
    from evomerge.evaluation.subject import Subject

Tokens = Sequence[int]

# Log-likelihoods this close (relative; absolute below 1) are a tie: the first option wins.
SAME_WITHIN = 1e-5
CPU_TOKENS = 2048  # beyond this a CPU gains nothing and its caches overflow
ACCELERATOR_TOKENS = 65536
LOGITS_IN_MEMORY = 2**26  # 256 MiB of float32


class Shape(NamedTuple):
    """What one row costs; rows of equal shape share a batch.

    Attributes:
        width: T, tokens of a row, padding included.
        keep: Positions of a row whose logits are computed; 0: no logits over a vocabulary.
        full: Whether the row has no padding. Attention masks without padding are left out by
            transformers, which picks another kernel.
    """

    width: int
    keep: int = 0
    full: bool = False


@dataclass(frozen=True)
class Limits:
    """How large a batch may become.

    Attributes:
        tokens: B times T, or "auto".
        rows: B; None: as many as the tokens allow.
    """

    tokens: int | Literal["auto"] = "auto"
    rows: int | None = None

    def __post_init__(self) -> None:
        if self.tokens != "auto" and self.tokens < 1:
            raise ConfigError(f"batch_tokens is {self.tokens}, expected at least 1, or auto.")


class TokenBudget:
    """The tokens a forward pass may hold on one device; halved for good when memory runs out."""

    def __init__(self, device: torch.device, n_vocabulary: int | None) -> None:
        """Args: n_vocabulary: width of the logits, None when the model has none over tokens."""
        self.auto = CPU_TOKENS if device.type == "cpu" else ACCELERATOR_TOKENS
        self._n_vocabulary = n_vocabulary or 1
        self.cap: int | None = None

    def rows(self, shape: Shape, limits: Limits) -> int:
        """Return the most rows of `shape` for one forward pass, at least 1."""
        tokens = self.auto if limits.tokens == "auto" else limits.tokens
        tokens = tokens if self.cap is None else min(tokens, self.cap)
        rows = tokens // shape.width
        if shape.keep and limits.tokens == "auto":
            rows = min(rows, LOGITS_IN_MEMORY // (shape.keep * self._n_vocabulary))
        return max(1, rows if limits.rows is None else min(rows, limits.rows))

    def halve(self, tokens: int) -> None:
        """Remember that `tokens` were too many."""
        self.cap = max(1, tokens // 2)


def padded_width(length: int, limit: int | None = None, step: int = 16) -> int:
    """Return the width a row of `length` is padded to: at most an eighth more, or `step`.

    Args:
        length: Tokens of the row; 0 stays 0.
        limit: Most tokens the model takes.
        step: Smallest difference between two widths.
    """
    step = max(step, 1 << max(0, length.bit_length() - 4))
    width = -(-length // step) * step
    return width if limit is None else max(length, min(width, limit))


def for_each_batch(
    subject: Subject,
    shapes: Sequence[Shape],
    limits: Limits,
    run: Callable[[Shape, list[int]], None],
) -> None:
    """Call `run` with batches of row numbers until every row was in one, widest rows first.

    A batch that runs out of memory is halved and run again; the size is remembered.

    Args:
        subject: Holds the token budget.
        shapes: Shape of each row.
        limits: Size of a batch.
        run: Scores rows of one shape; it keeps nothing of a call that raises.

    Raises:
        MemoryError: Not even a single row fits (on an accelerator torch.OutOfMemoryError).
    """
    groups: dict[Shape, list[int]] = {}
    for row, shape in enumerate(shapes):
        groups.setdefault(shape, []).append(row)
    for shape in sorted(groups, reverse=True):
        waiting = groups[shape]
        while waiting:
            n_batches = -(-len(waiting) // subject.budget.rows(shape, limits))
            batch = waiting[: -(-len(waiting) // n_batches)]
            try:
                run(shape, batch)
            except (MemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error):
                    raise
                if len(batch) == 1 and isinstance(error, torch.OutOfMemoryError | MemoryError):
                    raise
                if len(batch) == 1:
                    raise MemoryError(str(error)) from error
                subject.budget.halve(len(batch) * shape.width)
            else:
                waiting = waiting[len(batch) :]


def filled(batch: Sequence[int], device: torch.device) -> list[int]:
    """Return `batch` with its first row repeated up to the rows a matrix product needs.

    Only where a model multiplies one vector per row (a classifier, a decoding step).
    """
    threads = torch.get_num_threads()
    floor = 1 if device.type != "cpu" else 4 if threads == 1 else min(64, 8 * threads)
    return [*batch, *[batch[0]] * (floor - len(batch))]


def pad(
    sequences: Sequence[Tokens],
    pad_id: int,
    *,
    side: Literal["left", "right"],
    width: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (B, T) int64 token ids and their attention mask; T is the longest, or `width`."""
    width = max(map(len, sequences)) if width is None else width
    ids: NDArray[np.int64] = np.full((len(sequences), width), pad_id, dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, tokens in enumerate(sequences):
        where = slice(0, len(tokens)) if side == "right" else slice(width - len(tokens), width)
        ids[row, where] = tokens
        mask[row, where] = 1
    return torch.from_numpy(ids), torch.from_numpy(mask)


def _is_out_of_memory(error: Exception) -> bool:
    # PyTorch's CPU allocator raises a plain RuntimeError.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        "allocate memory" in str(error)
    )
