"""The evaluators of a config: what is searched on, chosen by, and measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from evomerge.config.construct import construct
from evomerge.config.overlap import refuse_overlap
from evomerge.config.schema import RunConfig
from evomerge.config.splits import refuse_shared_examples, split_task
from evomerge.errors import ConfigError
from evomerge.evaluation.evaluator import Evaluator, evaluators
from evomerge.evaluation.part import whole_of


@dataclass(frozen=True, eq=False)
class Tasks:
    """The evaluators of a config.

    Attributes:
        search: Task -> evaluator the search optimises.
        held_out: Task -> evaluator over test examples, from `held_out:` or the test split; only
            tasks that have some.
        sizes: Task -> N of `search`.
        validation: Task -> evaluator over the examples that finalists are chosen by; all tasks or
            none.
    """

    search: Mapping[str, Evaluator]
    held_out: Mapping[str, Evaluator]
    sizes: Mapping[str, int]
    validation: Mapping[str, Evaluator] = field(default_factory=dict)


def build_tasks(config: RunConfig) -> Tasks:
    """Build the evaluators and read their data.

    Raises:
        ConfigError: A key is wrong, or examples of one part are also in another.
        DataError: Examples are missing or malformed.
    """
    search: dict[str, Evaluator] = {}
    validation: dict[str, Evaluator] = {}
    held_out: dict[str, Evaluator] = {}
    for index, task in enumerate(config.tasks):
        where = f"tasks.{index}"
        whole: Evaluator = construct(evaluators, task.evaluator, f"{where}.evaluator", Path())[0]
        if task.splits is None:
            search[task.name] = whole
            continue
        if task.held_out is not None and task.splits.test:
            raise ConfigError(
                f"{where}: has two sets of test examples, `held_out` and `splits.test`; remove one"
            )
        whole.n_examples()  # checks every example
        parts = split_task(f"{where}.splits", whole, task.splits)
        search[task.name] = parts["search"]
        if "validation" in parts:
            validation[task.name] = parts["validation"]
        if "test" in parts:
            held_out[task.name] = parts["test"]
    sizes = {name: evaluator.n_examples() for name, evaluator in search.items()}
    if validation and len(validation) < len(search):
        missing = min(set(search) - set(validation))
        raise ConfigError(
            f"tasks: {missing!r} has no validation examples while {min(validation)!r} has; "
            "candidates are chosen by all objectives, so give every task `splits.validation`"
        )
    for index, task in enumerate(config.tasks):
        if task.held_out is None:
            continue
        where = f"tasks.{index}.held_out"
        if not task.held_out:
            raise ConfigError(
                f"{where}: is empty, so the search's own examples would be the test; give the "
                "keys of the evaluator that differ, such as `examples` or `rows`, or remove it"
            )
        body = {**task.evaluator, **task.held_out}
        held_out[task.name] = construct(evaluators, body, where, Path())[0]
        held_out[task.name].n_examples()
        # The whole of a split task: its validation examples choose, so they are no test either.
        refuse_overlap(where, held_out[task.name], {k: whole_of(e) for k, e in search.items()})
    if validation or held_out:
        refuse_shared_examples(search, {"validation": validation, "test": held_out})
    return Tasks(search, held_out, sizes, validation)
