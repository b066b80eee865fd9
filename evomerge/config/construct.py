"""Build a registered dataclass from its mapping in a config.

Constructor = config: the mapping's keys are exactly the constructor's keywords; each value is
validated against the field's type; a `Path` is resolved against the config's folder.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from pydantic import ConfigDict, TypeAdapter, ValidationError

from evomerge.errors import ConfigError, nearest
from evomerge.registry import Registry


def construct(
    registry: Registry, body: Mapping[str, Any], where: str, base_dir: Path
) -> tuple[Any, dict[str, Any]]:
    """Return the object a mapping with ``name:`` describes, and the mapping with all defaults.

    Args:
        registry: Where `name` is looked up.
        body: `name` and the constructor's keywords.
        where: Position in the config, for errors ("algorithm", "tasks.0.evaluator").
        base_dir: Folder that relative paths start from.

    Raises:
        ConfigError: Unknown name or key, missing key, or a value of the wrong type.
    """
    name, cls = named_class(registry, body, where)
    values = {key: value for key, value in body.items() if key != "name"}
    keywords = check_keywords(cls, values, where, name, base_dir)
    try:
        built = cls(**keywords)
    except ConfigError as error:
        text = str(error)
        raise ConfigError(text if text.startswith(f"{where}.") else f"{where}: {text}") from None
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from None
    resolved = {
        item.name: _plain(getattr(built, item.name))
        for item in dataclasses.fields(cls)
        if item.init
    }
    return built, {"name": name, **resolved}


def named_class(registry: Registry, body: Mapping[str, Any], where: str) -> tuple[str, type]:
    """Return the name a mapping gives under ``name:``, and the class it means.

    Raises:
        ConfigError: There is no `name:`, or nothing is registered under it.
    """
    if "name" not in body:
        raise ConfigError(f"{where}: needs a `name:`. Known: {', '.join(registry.names())}.")
    name = str(body["name"])
    try:
        return name, registry.get(name)
    except ConfigError as error:
        raise ConfigError(f"{where}.name: {error}") from None


def check_keywords(
    cls: type, values: Mapping[str, Any], where: str, name: str, base_dir: Path
) -> dict[str, Any]:
    """Return validated constructor keywords; see `construct`."""
    fields = {item.name: item for item in dataclasses.fields(cls) if item.init}
    for key in values:
        if key not in fields:
            raise ConfigError(
                f"{where}.{key} is not a parameter of {name!r}.{nearest(str(key), fields)} "
                f"Known: {', '.join(sorted(fields))}."
            )
    for key, item in fields.items():
        has_default = (
            item.default is not dataclasses.MISSING
            or item.default_factory is not dataclasses.MISSING
        )
        if key not in values and not has_default:
            raise ConfigError(f"{where}.{key} is missing; {name!r} needs it")
    hints = typing.get_type_hints(cls, include_extras=True)
    checked: dict[str, Any] = {}
    for key, value in values.items():
        section = section_class(hints[key])
        if section is not None and isinstance(value, Mapping):
            inner = check_keywords(section, value, f"{where}.{key}", key, base_dir)
            try:
                checked[key] = section(**inner)
            except ConfigError as error:
                raise ConfigError(f"{where}.{key}: {error}") from None
            continue
        try:
            adapter = TypeAdapter(hints[key], config=ConfigDict(arbitrary_types_allowed=True))
            checked[key] = adapter.validate_python(value)
        except ValidationError as error:
            raise ConfigError(f"{where}.{key}: {describe(error)}") from None
        if _is_path(hints[key]) and checked[key] is not None:
            checked[key] = (base_dir / checked[key]).resolve()
    return checked


def describe(error: ValidationError) -> str:
    """Return the first problem of a pydantic error in one line, with the value it met."""
    first = error.errors()[0]
    got = repr(first.get("input"))
    inner = ".".join(str(part) for part in first["loc"] if not str(part).startswith("function"))
    message = re.sub(r"a valid dictionary( or instance of \w+)?", "a mapping", first["msg"])
    message = message.removeprefix("Value error, ")  # pydantic's word, of no use to the reader
    return f"{inner + ': ' if inner else ''}{message}, got {got[:80]}"


def _is_path(hint: Any) -> bool:
    if get_origin(hint) in (Union, types.UnionType):
        return any(_is_path(part) for part in get_args(hint))
    return hint is Path


def section_class(hint: Any) -> type | None:
    """Return the dataclass that a mapping under a key of this type describes."""
    parts = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    classes = (part for part in parts if isinstance(part, type) and dataclasses.is_dataclass(part))
    return next(classes, None)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: _plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value
