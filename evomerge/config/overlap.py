"""Test examples must be others than those the search optimises on."""

from __future__ import annotations

import dataclasses
import filecmp
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evomerge.errors import ConfigError
from evomerge.evaluation.evaluator import Evaluator

# Settings that change how an evaluator without a file counts or runs, not what it scores.
_NOT_DATA = ("n", "batch_size")


def refuse_overlap(where: str, held_out: Evaluator, search: Mapping[str, Evaluator]) -> None:
    """Raise ConfigError if test examples are scored by the search as well.

    Args:
        where: Position in the config, such as ``tasks.0.held_out``.
        held_out: The evaluator over test examples.
        search: Task -> evaluator of the search; all of them, as each shapes the candidates.
    """
    mine = _examples(held_out)
    for task, evaluator in search.items():
        theirs = _examples(evaluator)
        shared = _documents(held_out) & _documents(evaluator)
        if shared:
            path, number = min(shared)
            raise ConfigError(
                f"{where}: shares {len(shared)} documents of {path} with the search of task "
                f"{task!r}, such as number {number}; give both `rows:` that do not meet"
            )
        if mine is None or theirs is None:
            if mine is theirs and _arguments(held_out) == _arguments(evaluator):
                raise ConfigError(
                    f"{where}: scores the same arguments as the search of task {task!r}; give "
                    "it others, or remove `held_out`"
                )
            continue
        if not _same_file(mine, theirs):
            continue
        (start, stop), (first, last) = _extent(held_out, mine), _extent(evaluator, theirs)
        low, high = max(start, first), min(stop, last)
        if low < high:
            unit = _unit(held_out, mine)
            raise ConfigError(
                f"{where}: shares rows {low // unit}..{(high - 1) // unit} of {mine} with the "
                f"search of task {task!r}; give both `rows:` that do not meet, or another file"
            )


def _examples(evaluator: Evaluator) -> Path | None:
    examples = getattr(evaluator, "examples", None)
    return None if examples is None else Path(examples)


def _documents(evaluator: Evaluator) -> frozenset[tuple[str, int]]:
    """Return the documents of an evaluator whose data has no file of its own; else none."""
    documents = getattr(evaluator, "document_ids", None)
    return frozenset() if documents is None else documents()


def _arguments(evaluator: Evaluator) -> dict[str, Any]:
    """Return the settings that say what an evaluator without a file scores."""
    fields = dataclasses.fields(evaluator)  # type: ignore[arg-type]
    values = {item.name: getattr(evaluator, item.name) for item in fields}
    return {key: value for key, value in values.items() if key not in _NOT_DATA}


def _same_file(one: Path, other: Path) -> bool:
    """Return whether two paths hold the same bytes; a copy is no new data."""
    return one.resolve() == other.resolve() or filecmp.cmp(one, other, shallow=False)


def _extent(evaluator: Evaluator, path: Path) -> tuple[int, int]:
    """Return the half-open range an evaluator reads, in rows (of plain text: in tokens)."""
    unit = _unit(evaluator, path)
    rows = getattr(evaluator, "rows", None)
    start, stop = (0, evaluator.n_examples()) if rows is None else rows
    return int(start) * unit, int(stop) * unit


def _unit(evaluator: Evaluator, path: Path) -> int:
    # Rows of a plain text are windows of so many tokens.
    return int(getattr(evaluator, "window", 1)) if path.suffix == ".txt" else 1
