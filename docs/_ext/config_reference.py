"""The config reference, made from the classes that read a config: keys, types, ranges, defaults.

Appended to `reference/config.md` when the site is built.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from evomerge.algorithms.algorithm import search_algorithms
from evomerge.algorithms.races.race import races
from evomerge.config import schema
from evomerge.config.construct import section_class
from evomerge.config.json_schema import config_schema, fields_schema
from evomerge.core.genes import gene_fields
from evomerge.core.layer_sequence_space import SequenceRules
from evomerge.evaluation.evaluator import evaluators
from evomerge.merging.operator import merge_operators
from evomerge.merging.transform import delta_transforms
from evomerge.trackers.tracker import trackers

if TYPE_CHECKING:
    from sphinx.application import Sphinx

PAGE = "reference/config"
SECTIONS = (
    ("The file", "RunConfig"),
    ("`base_model:`, `models:`", "ModelConfig"),
    ("`transforms:`", "TransformConfig"),
    ("`tasks:`", "TaskConfig"),
    ("`tasks: splits:`", "SplitsConfig"),
    ("`objectives:`", "ObjectiveConfig"),
    ("`constraints:`", "ConstraintConfig"),
    ("`budget:`", "BudgetConfig"),
    ("`search:`", "SearchConfig"),
    ("`runtime:`", "RuntimeConfig"),
    ("`runtime.staging:`", "StagingConfig"),
)
REGISTRIES = (
    ("`merge:`", merge_operators),
    ("`transforms:` by name", delta_transforms),
    ("`algorithm:`", search_algorithms),
    ("`racing:`", races),
    ("`evaluator:`", evaluators),
    ("`trackers:`", trackers),
)
_HEADINGS = ("Attributes:", "Args:", "Raises:", "Source:", "Returns:", "Class attributes:")


def reference() -> str:
    """Return the whole reference as Markdown."""
    return "\n".join([*_sections(), *_names()]) + "\n"


def _sections() -> Iterator[str]:
    whole = config_schema()
    for title, name in SECTIONS:
        cls: type[BaseModel] = getattr(schema, name)
        body = whole if name == "RunConfig" else whole["$defs"].get(name)
        if body is None:  # its schema is merged with those of the names
            body = cls.model_json_schema()
        yield from (f"## {title}", "", _summary(cls), "")
        yield from _table(body, _attributes(cls))


def _names() -> Iterator[str]:
    for title, registry in REGISTRIES:
        yield from (f"## {title}", "")
        for name in registry.names():
            yield from _class(name, registry.get(name))
        if registry is merge_operators:
            yield from _class("layer_sequence", SequenceRules)


def _class(name: str, cls: type) -> Iterator[str]:
    yield from (f"### `{name}`", "", _summary(cls), "")
    genes = {item.name: item.gene for item in gene_fields(cls)}
    ranges = {key: f"{gene.low:g} … {gene.high:g}" for key, gene in genes.items()}
    yield from _table(fields_schema(cls), _attributes(cls), ranges)
    yield from _inner(cls, "")


def _inner(cls: type, path: str) -> Iterator[str]:
    """Return a table for each key of a class that is a mapping with keys of its own."""
    hints = typing.get_type_hints(cls, include_extras=True)
    for item in dataclasses.fields(cls):
        section = section_class(hints[item.name]) if item.init else None
        if section is not None:
            keys = f"{path}{item.name}: "
            yield from (f"`{keys.strip()}`: {_summary(section)}", "")
            yield from _table(fields_schema(section), _attributes(section))
            yield from _inner(section, keys)


def _table(
    body: Mapping[str, Any], texts: Mapping[str, str], ranges: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Return the rows of one mapping's keys; `ranges` are those that a search draws from."""
    if not body["properties"]:
        return
    required = set(body.get("required", ()))
    yield "| key | type | default | |" if not ranges else "| key | type | default | range | |"
    yield "|---|---|---|---|" if not ranges else "|---|---|---|---|---|"
    for key, item in body["properties"].items():
        default = "required" if key in required else _default(item)
        cells = [f"`{key}`", _type(item), default]
        if ranges:
            cells.append(ranges.get(key, ""))
        yield f"| {' | '.join([*cells, texts.get(key, '')])} |"
    yield ""


def _default(item: Mapping[str, Any]) -> str:
    value = item.get("default")
    if isinstance(value, dict | list):
        return ""
    if value is None or value == "":
        return ""
    return f"`{str(value).lower()}`" if isinstance(value, bool) else f"`{value}`"


def _type(item: Mapping[str, Any]) -> str:
    """Return a JSON schema in a few words."""
    if "const" in item:
        return f"`{item['const']}`"
    if "enum" in item:
        return ", ".join(f"`{value}`" for value in item["enum"])
    for several in ("anyOf", "oneOf"):
        if several in item:
            known = (_type(part) for part in item[several] if part.get("type") != "null")
            return " or ".join(dict.fromkeys(known))
    if "$ref" in item:
        return "section"
    if item.get("type") == "array":
        inner = _type(item["items"]) if "items" in item else "values"
        return f"list of {inner}"
    return {"object": "mapping", "string": "text"}.get(item.get("type", ""), item.get("type", ""))


def _summary(cls: type) -> str:
    """Return what a docstring says in front of its sections."""
    lines = inspect.cleandoc(cls.__doc__ or "").splitlines()
    end = next((i for i, line in enumerate(lines) if line.startswith(_HEADINGS)), len(lines))
    source = re.search(r"^Source:.*(\n(?! |.*:$).+)*", "\n".join(lines[end:]), flags=re.MULTILINE)
    parts = ["\n".join(lines[:end]).strip(), source[0] if source else ""]
    return _plain("\n\n".join(part for part in parts if part))


def _attributes(cls: type) -> dict[str, str]:
    """Return attribute -> description of a class and its bases, from their docstrings."""
    found: dict[str, str] = {}
    for part in reversed(cls.__mro__):
        text = inspect.cleandoc(part.__dict__.get("__doc__") or "")
        match = re.search(r"^Attributes:\n((?:[ ]+.*\n?|\n)+)", text, flags=re.MULTILINE)
        for entry in re.split(r"^    (?=\S)", match[1] if match else "", flags=re.MULTILINE):
            name, colon, body = entry.partition(":")
            if colon:
                found[name.strip()] = _plain(" ".join(body.split()))
    return found


def _plain(text: str) -> str:
    """Return a docstring's text as Markdown that shows it as it is, `code` apart."""
    if re.search(r"^=+ +=+$", text, flags=re.MULTILINE):  # a table
        head, table, tail = re.split(r"^(?==+ +=)((?:.+\n)+)", text, maxsplit=1, flags=re.MULTILINE)
        return f"{_plain(head)}\n```text\n{table}```\n{_plain(tail)}"
    pieces = re.split(r"(``.+?``|`[^`]+`)", text)
    return "".join(
        piece if piece.startswith("`") else re.sub(r"([*_<>|\[\]\\])", r"\\\1", piece)
        for piece in pieces
    )


def _append(app: Sphinx, docname: str, source: list[str]) -> None:
    del app
    if docname == PAGE:
        source[0] += "\n" + reference()


def setup(app: Sphinx) -> dict[str, bool]:
    """Fill the page as it is read."""
    app.connect("source-read", _append)
    return {"parallel_read_safe": True}
