"""Pieces of a mergekit YAML file: model references and parameters, checked and typed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from evomerge.config.schema import ModelConfig
from evomerge.errors import ConfigError, nearest
from evomerge.merging.mergekit_rules import Condition

FLAGS = (
    "normalize", "rescale", "int8_mask", "nuslerp_flatten", "nuslerp_row_wise",
    "normalize_weights", "filter_wise",
)  # fmt: skip

_DTYPES = ("float32", "float16", "bfloat16")

Rule = tuple[Condition, ...]
Entries = list[tuple[str, dict[str, Any]]]


def mappings(value: Any, where: str, keys: Sequence[str]) -> Entries:
    """Return (place, mapping) of each item of a non-empty list; only `keys` may occur."""
    if not isinstance(value, list) or not value:
        raise ConfigError(f"{where}: expected a list of models, got {shown(value)}")
    found = []
    for index, item in enumerate(value):
        place = f"{where}.{index}"
        if not isinstance(item, dict):
            raise ConfigError(f"{place}: expected a mapping, got {shown(item)}")
        check_keys(item, keys, f"{place}.")
        found.append((place, item))
    return found


def check_keys(body: Mapping[Any, Any], known: Sequence[str], where: str) -> None:
    """Raise ConfigError for a key that is not known; `where` is put before it."""
    for key in body:
        if key not in known:
            raise ConfigError(
                f"{where}{key}: evomerge does not read this key.{nearest(str(key), known)} "
                f"Known: {', '.join(known) or 'none'}."
            )


def parse_model(value: Any, where: str) -> ModelConfig:
    """Return a model from `path`, `path@revision`, `path+lora`, or mergekit's nested mapping."""
    if isinstance(value, dict):
        check_keys(value, ("model", "lora"), f"{where}.")
        path, revision = _path(value.get("model"), f"{where}.model")
        lora = value.get("lora")
    elif isinstance(value, str) and value.count("+") <= 1:
        name, _, rest = value.partition("+")
        path, revision = _path(name, where)
        lora = rest or None
    else:
        raise ConfigError(f"{where}: expected a path or Hub id, got {shown(value)}")
    adapter, adapter_revision = (None, None) if lora is None else _path(lora, f"{where}.lora")
    if adapter_revision is not None:
        raise ConfigError(f"{where}: a revision of a LoRA adapter is not supported")
    return ModelConfig(model=path, revision=revision, lora=adapter)


def _path(value: Any, where: str) -> tuple[str, str | None]:
    revision = None
    if isinstance(value, dict):
        check_keys(value, ("path", "revision"), f"{where}.")
        value, revision = value.get("path"), value.get("revision")
    elif isinstance(value, str) and value.count("@") == 1:
        value, _, revision = value.partition("@")
    if not isinstance(value, str) or not value or not isinstance(revision, str | None):
        raise ConfigError(f"{where}: expected a path or Hub id, got {shown(value)}")
    return value, revision


def parse_parameters(
    value: Any, where: str, known: Sequence[str], method: Any, common: Sequence[str] = ()
) -> dict[str, Rule]:
    """Return the rules of one `parameters` mapping.

    Args:
        value: What the file has there.
        where: Its place in the file.
        known: Keys that mean something in this place.
        method: The merge method, for messages.
        common: Keys that belong to the file's common parameters.
    """
    where = where if where.endswith("parameters") else f"{where}.parameters"
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: expected a mapping, got {shown(value)}")
    for key in value:
        if key in known:
            continue
        if key in common:
            raise ConfigError(
                f"{where}.{key}: mergekit passes over it here; put it in the top-level parameters"
            )
        raise ConfigError(
            f"{where}.{key} is not a parameter of {method} here.{nearest(str(key), known)} "
            f"Known: {', '.join(known) or 'none'}."
        )
    return {key: _rule(item, f"{where}.{key}", key in FLAGS) for key, item in value.items()}


def _rule(value: Any, where: str, is_flag: bool) -> Rule:
    """Return the conditions of one parameter: a number, a gradient, or a list of filters."""
    if not (isinstance(value, list) and value and isinstance(value[0], dict)):
        return (Condition(_value(value, where, is_flag)),)
    conditions = []
    for index, item in enumerate(value):
        place = f"{where}.{index}"
        if not isinstance(item, dict) or "value" not in item:
            raise ConfigError(f"{place}: expected {{filter, value}}, got {shown(item)}")
        check_keys(item, ("filter", "value"), f"{place}.")
        wanted = item.get("filter")
        if not isinstance(wanted, str | None):
            raise ConfigError(f"{place}.filter: expected text, got {shown(wanted)}")
        conditions.append(Condition(_value(item["value"], f"{place}.value", is_flag), wanted))
    return tuple(conditions)


def _value(value: Any, where: str, is_flag: bool) -> float | bool | tuple[float, ...]:
    if is_flag:
        if isinstance(value, bool) or value in (0, 1):
            return bool(value)
        raise ConfigError(f"{where}: expected true or false, got {shown(value)}")
    if isinstance(value, list) and value and all(_is_number(item) for item in value):
        return tuple(float(item) for item in value)
    if _is_number(value):
        return float(value)
    hint = " (YAML reads 1e-3 as text; write 1.0e-3)" if isinstance(value, str) else ""
    raise ConfigError(f"{where}: expected a number or a list of numbers, got {shown(value)}{hint}")


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) < 1e300 and math.isfinite(value)


def parse_flag(rule: Rule, key: str) -> bool:
    """Return the one value of a flag; ConfigError if it depends on the tensor."""
    if rule[0].filter not in (None, "*"):
        raise ConfigError(f"parameters.{key}: evomerge has one value for the whole model")
    return bool(rule[0].value)


def parse_constant(rule: Rule, key: str) -> float:
    """Return the one number of a setting; ConfigError if it depends on the tensor."""
    value = rule[0].value
    if rule[0].filter not in (None, "*") or isinstance(value, tuple):
        raise ConfigError(f"parameters.{key}: evomerge has one value for the whole model")
    return float(value)


def parse_dtype(body: Mapping[str, Any]) -> str | None:
    """Return the output dtype a file asks for, None for the models'; checks the tokenizer, too."""
    tokenizer = body.get("tokenizer_source")
    if tokenizer not in (None, "base"):
        raise ConfigError(
            f"tokenizer_source: {shown(tokenizer)} is not supported; the output gets the "
            "tokenizer of base_model, or of the first model (`tokenizer_source: base`)"
        )
    for key in ("dtype", "out_dtype"):
        if body.get(key) not in (None, *_DTYPES):
            raise ConfigError(
                f"{key}: {shown(body[key])} is not one of {', '.join(_DTYPES)}."
                f"{nearest(str(body[key]), _DTYPES)}"
            )
    found = body.get("out_dtype") or body.get("dtype")
    return None if found is None else str(found)


def shown(value: Any) -> str:
    """Return a value as text for a message, cut short."""
    return repr(value)[:80]
