"""The `constraints:` section of a config -> constraints on candidates.

==============================  =====================================================
``at_least: 0.7``               a number, in the unit of the scores
``at_least: base``              what that model scores (a founder of the run)
``at_least: 0.95 * base``       a share of it, for scores that are not negative
``at_most: base + 0.02``        a distance from it
==============================  =====================================================
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from evomerge.core.objective import Bound, Constraint, Objective
from evomerge.errors import ConfigError, nearest

if TYPE_CHECKING:
    from evomerge.config.schema import ConstraintConfig, RunConfig

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_RELATIVE = re.compile(
    rf"(?:(?P<factor>{_NUMBER})\s*\*\s*)?(?P<source>[A-Za-z0-9_.-]*[A-Za-z_][A-Za-z0-9_.-]*)"
    rf"(?:\s+(?P<sign>[+-])\s*(?P<offset>{_NUMBER}))?"
)


def build_constraints(config: RunConfig) -> tuple[Constraint, ...]:
    """Return the constraints of a config; `check_bound_sources` looks at the models in them.

    Raises:
        ConfigError: A task does not exist, or a bound is none of the table above.
    """
    return tuple(
        constraint
        for index, item in enumerate(config.constraints)
        for constraint in _constraints(config, item, f"constraints.{index}")
    )


def parse_bound(value: float | str, where: str) -> Bound:
    """Return the bound that a number or a text of the table above means.

    Raises:
        ConfigError: It is none of them; names `where`.
    """
    if isinstance(value, int | float):
        return Bound(float(value))
    found = _RELATIVE.fullmatch(value.strip())
    if not found:
        raise ConfigError(
            f"{where} is {value!r}; expected a number, a model's name, '0.95 * base' "
            "or 'base - 0.02'"
        )
    sign = -1.0 if found["sign"] == "-" else 1.0
    factor, offset = float(found["factor"] or 1.0), sign * float(found["offset"] or 0.0)
    if not (math.isfinite(factor) and math.isfinite(offset)) or factor == 0.0:
        raise ConfigError(
            f"{where} is {value!r}; expected finite numbers and a factor other than 0"
        )
    return Bound(offset, factor, found["source"])


def _constraints(config: RunConfig, item: ConstraintConfig, where: str) -> list[Constraint]:
    tasks = {item.task: 1.0} if item.task is not None else item.tasks
    if tasks is None or (item.task is not None and item.tasks is not None):
        raise ConfigError(f"{where}: give either `task` or `tasks`")
    known = [task.name for task in config.tasks]
    for task in tasks:
        if task not in known:
            raise ConfigError(
                f"{where}: {task!r} is not a task.{nearest(task, known)} Tasks: {', '.join(known)}."
            )
    measure = Objective(item.name or item.task or " + ".join(tasks), tasks)
    bounds = [
        Constraint(measure, parse_bound(value, f"{where}.{key}"), key == "at_least")
        for key, value in (("at_least", item.at_least), ("at_most", item.at_most))
        if value is not None
    ]
    if not bounds:
        raise ConfigError(f"{where}: give `at_least`, `at_most` or both")
    return bounds


def check_bound_sources(config: RunConfig) -> None:
    """Refuse bounds relative to something that will not be scored as a founder.

    Args:
        config: A config whose models have got their names.

    Raises:
        ConfigError: Names the constraint and what it may refer to.
    """
    models = [*([config.base_model] if config.base_model else []), *config.models]
    dropped = {
        name
        for group in config.transforms
        if not group.keep_parents
        for name in (group.of or [str(model.name) for model in config.models])
    }
    names = [str(model.name) for model in models if model.name not in dropped]
    for constraint in build_constraints(config):
        source = constraint.bound.source
        if source is None:
            continue
        if source not in names:
            raise ConfigError(
                f"constraints: {constraint}: {source!r} is not a model of the search."
                f"{nearest(source, names)} Models: {', '.join(names)}."
            )
        if config.search.founders == "none":
            raise ConfigError(
                f"constraints: {constraint}: {source!r} is scored only as a founder; set "
                "search.founders to 'parents' or 'all', or give a number"
            )
