"""One parameter of the `merge:` section: a fixed value, or a range that is searched."""

from __future__ import annotations

from typing import Any

import numpy as np

from evomerge.core.arrays import FloatArray
from evomerge.core.genes import GeneField
from evomerge.core.search_space import SearchedParam
from evomerge.errors import ConfigError


def parse_parameter(
    item: GeneField, value: Any, columns: int, where: str
) -> tuple[SearchedParam | None, FloatArray]:
    """Return (searched, _) or (None, (columns,) fixed values).

    Args:
        item: The parameter.
        value: As the section gives it; see `merge_space`.
        columns: Values per group.
        where: Position in the config, for errors.

    Raises:
        ConfigError: The value is malformed, not legal, or an empty range.
    """
    gene = item.gene
    low, high, initial = gene.low, gene.high, None
    if isinstance(value, bool) or not isinstance(value, int | float | str | list | dict):
        raise ConfigError(f"{where} is {value!r}; expected a number, a range or 'search'")
    if isinstance(value, int | float):
        return None, _legal(item, [value] * columns, where)
    if isinstance(value, str):
        if value != "search":
            raise ConfigError(f"{where} is {value!r}; expected a number, a range or 'search'")
    elif isinstance(value, list):
        if len(value) != 2:
            raise ConfigError(
                f"{where}: a range is [low, high]; for one value per model write {{values: [...]}}"
            )
        low, high = (_number(part, where) for part in value)
    elif set(value) == {"values"} and isinstance(value["values"], list):
        values = [_number(part, where) for part in value["values"]]
        if len(values) != columns:
            raise ConfigError(f"{where}: {len(values)} values for {columns} models")
        return None, _legal(item, values, where)
    else:
        extra = set(value) - {"low", "high", "initial"}
        if extra or not {"low", "high"} <= set(value):
            raise ConfigError(f"{where}: expected low, high and perhaps initial; got {value!r}")
        low, high = _number(value["low"], where), _number(value["high"], where)
        initial = _number(value["initial"], where) if value.get("initial") is not None else None
    if not low < high:
        raise ConfigError(f"{where}: the range [{low:g}, {high:g}] is empty")
    _legal(item, [low, high], where)
    if initial is None:
        usual = item.default if gene.initial is None else gene.initial
        if usual is None:
            usual = 1.0 / columns if item.per_source else (low + high) / 2
        initial = min(max(usual, low), high)
    elif not low <= initial <= high:
        raise ConfigError(f"{where}: initial {initial:g} is outside [{low:g}, {high:g}]")
    return SearchedParam(item.name, columns, item.per_source, low, high, initial), np.zeros(0)


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        raise ConfigError(f"{where}: {value!r} is not a finite number")
    return float(value)


def _legal(item: GeneField, values: list[Any], where: str) -> FloatArray:
    numbers = [_number(value, where) for value in values]
    for number in numbers:
        item.gene.check(number, where)
    return np.array(numbers)
