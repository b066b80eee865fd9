"""Checking an operator's fields against their annotations.

Every built-in operator calls `check_fields` when it is made, so that a misspelt choice never
falls through to another formula.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Iterable
from dataclasses import MISSING, Field, fields
from functools import cache
from typing import Any, Literal, get_args, get_origin

from evomerge.core.genes import gene_fields, setting_names
from evomerge.errors import ConfigError, nearest


@cache
def _setting_hints(operator: type) -> dict[str, Any]:
    hints = typing.get_type_hints(operator)
    return {name: hints[name] for name in setting_names(operator)}


def default_settings(operator: type) -> dict[str, Any]:
    """Return the operator's settings with their defaults."""
    defaults = {item.name: item.default for item in fields(operator)}
    return {name: defaults[name] for name in setting_names(operator)}


def check_fields(operator: Any, *, where: str = "") -> None:
    """Check that every gene is legal and every setting has the type it is annotated with.

    Args:
        operator: An instance of an operator dataclass.
        where: Text put before each field's name in messages.

    Raises:
        ConfigError: Names the field, its value and what is allowed.
    """
    cls: type = operator.__class__
    for item in gene_fields(cls):
        value = getattr(operator, item.name)
        for number in value if item.per_source else (value,):
            is_number = isinstance(number, (int, float)) and not isinstance(number, bool)
            if not is_number or not math.isfinite(number):
                raise ConfigError(f"{where}{item.name} must hold finite numbers, has {number!r}")
            item.gene.check(number, f"{where}{item.name}")
    for name, hint in _setting_hints(cls).items():
        _check_setting(getattr(operator, name), hint, f"{where}{name}")


def check_names(operator: type, names: Iterable[str], *, where: str) -> None:
    """Check that every name is a setting of `operator`.

    Raises:
        ConfigError: A name is unknown, or belongs to a searchable parameter.
    """
    known = setting_names(operator)
    genes = {item.name for item in gene_fields(operator)}
    for name in names:
        if name in genes:
            raise ConfigError(f"{where}.{name} is a parameter, not a setting: put it in `params`")
        if name not in known:
            raise ConfigError(
                f"{where}.{name} is not a setting of {operator.__name__}.{nearest(name, known)} "
                f"Known: {', '.join(known) or 'none'}."
            )


def _check_setting(value: object, hint: Any, where: str) -> None:
    if get_origin(hint) is Literal:
        choices = get_args(hint)
        if value not in choices:
            shown = ", ".join(repr(choice) for choice in choices)
            suggestion = nearest(value, [str(c) for c in choices]) if isinstance(value, str) else ""
            raise ConfigError(f"{where} is {value!r}, must be one of {shown}.{suggestion}")
        return
    is_bool = isinstance(value, bool)
    legal = {
        bool: is_bool,
        int: isinstance(value, int) and not is_bool,
        float: isinstance(value, (int, float)) and not is_bool,
        str: isinstance(value, str),
    }
    if not legal.get(hint, True):
        raise ConfigError(f"{where} is {value!r}, must be of type {hint.__name__}")


def require_fields(operator: type, given: Iterable[str], *, where: str) -> None:
    """Check that every parameter without a default is given and no unknown one is.

    Raises:
        ConfigError: Names the missing or unknown parameter.
    """
    names = list(given)
    genes = {item.name: item for item in gene_fields(operator)}
    settings = set(setting_names(operator))
    for name in names:
        if name in settings:
            raise ConfigError(f"{where}.{name} is a setting, not a parameter: put it in `settings`")
        if name not in genes:
            raise ConfigError(
                f"{where}.{name} is not a parameter of {operator.__name__}."
                f"{nearest(name, genes)} Known: {', '.join(genes) or 'none'}."
            )
    has_default = {item.name for item in fields(operator) if not _is_required(item)}
    for name in genes:
        if name not in names and name not in has_default:
            raise ConfigError(
                f"{where}.{name} is missing: {operator.__name__} has no default for it"
            )


def _is_required(item: Field[Any]) -> bool:
    return item.default is MISSING and item.default_factory is MISSING
