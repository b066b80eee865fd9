"""A task's examples, split by what they hold into search, validation and test."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evomerge.config.schema import SplitsConfig
from evomerge.core.splits import split_positions
from evomerge.errors import ConfigError
from evomerge.evaluation.evaluator import Evaluator, example_digests
from evomerge.evaluation.part import Part


def split_task(where: str, evaluator: Evaluator, splits: SplitsConfig) -> dict[str, Evaluator]:
    """Return split -> evaluator of its examples; only splits that have a share.

    Args:
        where: Position in the config, such as ``tasks.0.splits``.
        evaluator: Of all examples.
        splits: The shares.

    Raises:
        ConfigError: The evaluator says nothing of what its examples hold, or a split is empty.
    """
    identities = _identities(evaluator)
    if identities is None:
        raise ConfigError(
            f"{where}: {type(evaluator).__name__} has no example_digests, so its examples cannot "
            "be told apart; give the task other data under `held_out` instead"
        )
    parts: dict[str, Any] = {}
    for name, kept in split_positions(identities, splits.shares()).items():
        if splits.shares()[name] == 0.0:
            continue
        if not len(kept):
            raise ConfigError(
                f"{where}: none of {len(identities)} examples fell to {name!r} with a share of "
                f"{splits.shares()[name]:g}; give it a larger one, or the task more examples"
            )
        parts[name] = Part(evaluator, kept)
    return parts


def refuse_shared_examples(
    search: Mapping[str, Evaluator], later: Mapping[str, Mapping[str, Evaluator]]
) -> None:
    """Raise ConfigError if an example that is to be new was seen before.

    By content: a copy under another row, in another file or task is no new example. Examples that
    prompts show (few-shot) count as seen.

    Args:
        search: Task -> evaluator of the search.
        later: "validation" and "test" -> task -> evaluator; each of them must be new to the
            search and to the ones before it.
    """
    seen = {f"the search of task {task!r}": evaluator for task, evaluator in search.items()}
    everything = [*search.values(), *(e for parts in later.values() for e in parts.values())]
    shown = {digest for evaluator in everything for digest in _shown(evaluator)}
    for kind, parts in later.items():
        for task, evaluator in parts.items():
            mine = frozenset(_identities(evaluator) or ())
            for whose, other in seen.items():
                shared = mine & frozenset(_identities(other) or ())
                if shared:
                    number = (_identities(evaluator) or ()).index(min(shared))
                    raise ConfigError(
                        f"tasks: {len(shared)} {kind} examples of task {task!r} are also in {whose}"
                        f", such as number {number}; they hold the same and would be no test. "
                        "Remove the copies, or give tasks that share examples equal `splits`"
                    )
            if mine & shown:
                raise ConfigError(
                    f"tasks: {len(mine & shown)} {kind} examples of task {task!r} may be shown in "
                    "prompts as few-shot examples; take those from a split of their own, or set "
                    "num_fewshot: 0"
                )
        seen |= {f"the {kind} examples of task {task!r}": part for task, part in parts.items()}


def _identities(evaluator: Evaluator) -> tuple[str, ...] | None:
    """Return (N,) what tells examples apart: of documents where prompts hold others as well."""
    if isinstance(evaluator, Part):
        whole = _identities(evaluator.whole) or ()
        return tuple(whole[i] for i in evaluator.kept)
    documents = getattr(evaluator, "document_digests", None)
    found: tuple[str, ...] | None = documents() if documents else example_digests(evaluator)
    return found


def _shown(evaluator: Evaluator) -> frozenset[str]:
    """Return digests of the documents that prompts may show."""
    shown = getattr(evaluator, "shown_digests", None)
    return frozenset() if shown is None else shown()
