"""`modules: search`: a gene per group that sends the group back to the base."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from evomerge.core.genes import gene_fields
from evomerge.core.search_space import SWITCH, SearchedParam, SearchSpace
from evomerge.errors import ConfigError

# "On", and near enough to one half that a search with small steps tries "off" at once.
_INITIAL = 0.55


def with_switches(space: SearchSpace, value: Any, operator: Any) -> SearchSpace:
    """Return a space with a switch per group, which sets the group's weights to 0 below one half.

    Args:
        space: The space of the merge method alone.
        value: Value of the key; only "search" means something.
        operator: The merge method's class.

    Raises:
        ConfigError: The value is another one, or weight 0 for all models is not the base with
            this method, or its weights are fixed or on a curve.
    """
    if value != "search":
        raise ConfigError(f"merge.modules is {value!r}; expected 'search', or leave it out")
    if (
        not operator.needs_base
        or operator.weights_over != "experts"
        or not any(item.name == "weights" and item.per_source for item in space.searched)
    ):
        raise ConfigError(
            "merge.modules: switches groups off by weights of 0, so it needs a method on task "
            f"vectors whose weights are searched, such as task_arithmetic; {space.operator!r} as "
            "configured is none"
        )
    _refuse_without_zero(space, operator)
    if any(item.curve is not None for item in space.searched):
        raise ConfigError("merge.modules: a curve cannot be switched off in places; use one")
    switch = SearchedParam(SWITCH, 1, False, 0.0, 1.0, _INITIAL)
    return replace(space, searched=(*space.searched, switch))


def _refuse_without_zero(space: SearchSpace, operator: Any) -> None:
    """Refuse a method, or settings of it, that divide by the sum of the weights."""
    values: dict[str, Any] = {item.name: item.initial for item in space.searched}
    values |= {name: rows[0] for name, rows in space.fixed.items()}
    width = next(item.width for item in space.searched if item.name == "weights")
    values["weights"] = (0.0,) * width
    own = {item.name: values[item.name] for item in gene_fields(operator)}
    try:
        operator(**own, **space.settings)
    except ConfigError as error:
        raise ConfigError(
            f"merge.modules: switches groups off by weights of 0, but {error}"
        ) from None
