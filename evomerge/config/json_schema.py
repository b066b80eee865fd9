"""The JSON schema of config files, from the classes that read them; for editors.

What depends on more than the file (do models fit, is a range legal) is left to `evomerge check`.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, TypeAdapter
from pydantic.errors import PydanticInvalidForJsonSchema

import evomerge.config.build  # noqa: F401 (registers everything that is built in)
from evomerge.algorithms.algorithm import search_algorithms
from evomerge.algorithms.races.race import races
from evomerge.config.construct import section_class
from evomerge.config.schema import RunConfig
from evomerge.core.genes import GeneField, gene_fields
from evomerge.core.grouping import GROUPINGS
from evomerge.core.layer_sequence import LAYER_SEQUENCE
from evomerge.core.layer_sequence_space import SequenceRules
from evomerge.evaluation.evaluator import evaluators
from evomerge.merging.operator import merge_operators
from evomerge.merging.transform import delta_transforms
from evomerge.registry import Registry
from evomerge.trackers.tracker import trackers

Schema = dict[str, Any]

_NUMBER: Schema = {"type": "number"}
_RANGE: Schema = {"type": "array", "items": _NUMBER, "minItems": 2, "maxItems": 2}
_NUMBERS: Schema = {"type": "array", "items": _NUMBER}
# A searched parameter, see `merge_space`.
_PARAMETER: Schema = {
    "anyOf": [
        _NUMBER,
        {"const": "search"},
        _RANGE,
        {
            "type": "object",
            "properties": {
                "low": _NUMBER,
                "high": _NUMBER,
                "initial": _NUMBER,
                "curve": {"type": "integer", "minimum": 2},
                "values": _NUMBERS,
            },
            "additionalProperties": False,
        },
    ]
}


def config_schema() -> Schema:
    """Return the schema (draft 2020-12) of a config file, JSON-ready; plug-ins included."""
    schema = RunConfig.model_json_schema()
    schema |= {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "evomerge"}
    keys, definitions = schema["properties"], schema["$defs"]
    keys["merge"] = {"$ref": "#/$defs/Merge"}
    keys["algorithm"] = {"$ref": "#/$defs/Algorithm"}
    keys["racing"] = {"anyOf": [{"$ref": "#/$defs/Racing"}, {"type": "null"}]}
    keys["base_model"] = {"anyOf": [{"$ref": "#/$defs/Model"}, {"type": "null"}]}
    keys["models"]["items"] = {"$ref": "#/$defs/Model"}
    keys["transforms"]["items"] = {"$ref": "#/$defs/Transform"}
    keys["trackers"]["items"] = {"$ref": "#/$defs/Tracker"}
    definitions["Model"] = {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/ModelConfig"}]}
    definitions["Transform"] = _named(delta_transforms, definitions.pop("TransformConfig"))
    definitions["Merge"] = _merge()
    definitions["Algorithm"] = _named(search_algorithms)
    definitions["Racing"] = _named(races)
    definitions["Tracker"] = _named(trackers)
    definitions["Evaluator"] = _named(evaluators)
    task = definitions["TaskConfig"]["properties"]
    task["evaluator"] = {"$ref": "#/$defs/Evaluator"}
    return schema


def _named(registry: Registry, shared: Mapping[str, Any] | None = None) -> Schema:
    """Return the schema of a section with `name:`: the name alone, or its class's fields.

    Args:
        registry: Its names and classes.
        shared: Schema of an object whose properties every one of them has, too.
    """
    common = {} if shared is None else dict(shared["properties"])
    return _by_name(
        {
            name: _object(fields_schema(registry.get(name)), name, common)
            for name in registry.names()
        },
        registry.kind,
    )


def _by_name(bodies: Mapping[str, Schema], kind: str) -> Schema:
    """Return a schema that looks at `name` alone to choose, so that errors name one body only."""
    return {
        "description": f"{kind}: a name, or a mapping with `name:` and its parameters",
        "anyOf": [
            {"enum": list(bodies)},
            {
                "type": "object",
                "required": ["name"],
                "properties": {"name": {"enum": list(bodies)}},
                "allOf": [
                    {"if": {"properties": {"name": {"const": name}}}, "then": body}
                    for name, body in bodies.items()
                ],
            },
        ],
    }


def _object(fields: Schema, name: str, common: Mapping[str, Any]) -> Schema:
    properties = {**common, **fields["properties"], "name": {"const": name}}
    return fields | {"properties": properties}


def fields_schema(cls: type) -> Schema:
    """Return the schema of a mapping with the keywords of a dataclass."""
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = [item for item in dataclasses.fields(cls) if item.init]
    required = [
        item.name
        for item in fields
        if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
    ]
    properties = {item.name: _with_default(item, hints[item.name]) for item in fields}
    body: Schema = {"type": "object", "properties": properties, "additionalProperties": False}
    summary = (cls.__doc__ or "").strip().partition("\n")[0]
    return body | ({"required": required} if required else {}) | {"description": summary}


def _with_default(item: dataclasses.Field[Any], hint: Any) -> Schema:
    schema = _type(hint)
    if isinstance(item.default, str | int | float | bool):
        return schema | {"default": item.default}
    return schema


def _type(hint: Any) -> Schema:
    section = section_class(hint)
    if section is not None:
        body = fields_schema(section)
        return {"anyOf": [body, {"type": "null"}]} if section is not hint else body
    try:
        adapter = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
        return adapter.json_schema()
    except PydanticInvalidForJsonSchema:
        return {}  # a type that JSON schema has no word for: `check` looks at it


def _merge() -> Schema:
    """Return the schema of the `merge:` section: one method, several, or a layer sequence."""
    one = _by_name(
        {name: _method(name) for name in merge_operators.names()}
        | {LAYER_SEQUENCE: _object(fields_schema(SequenceRules), LAYER_SEQUENCE, {})},
        merge_operators.kind,
    )
    several = {
        "type": "object",
        "required": ["any_of"],
        "properties": {"any_of": {"type": "array", "items": one, "minItems": 2}},
    }
    alone = one["anyOf"][1] | {"not": {"required": ["any_of"]}}
    return one | {"anyOf": [one["anyOf"][0], alone, several]}


def _method(name: str) -> Schema:
    operator = merge_operators.get(name)
    genes: Mapping[str, GeneField] = {item.name: item for item in gene_fields(operator)}
    settings = fields_schema(operator)
    properties = {
        key: _parameter(genes[key]) if key in genes else value
        for key, value in settings["properties"].items()
    }
    cut = "|".join(item.replace(":N", r":[1-9]\d*") for item in GROUPINGS)
    properties |= {
        "name": {"const": name},
        "groups": {
            "type": "string",
            "pattern": f"^({cut})$",
            "description": "'global' where it is left out; with algorithm 'auto' one that makes "
            "about 64 searched numbers",
        },
        "layer_scale": {"type": "object"},
        "modules": {"const": "search"},
    }
    return {
        "type": "object",
        "description": settings["description"],
        "properties": properties,
        "additionalProperties": False,
    }


def _parameter(item: GeneField) -> Schema:
    gene = item.gene
    text = f"fixed, 'search' ({gene.low:g} to {gene.high:g}) or a range"
    fixed = {} if item.default is None else {"default": item.default}
    return {**_PARAMETER, "description": text, **fixed}
