"""Docstrings and rows of docs/methods.md say where a method is from, and what its code says."""

import inspect
import re
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from evomerge.algorithms.algorithm import search_algorithms
from evomerge.core.genes import gene_fields
from evomerge.merging.operator import merge_operators
from evomerge.merging.transform import delta_transforms

METHODS = (Path(__file__).parents[1] / "docs" / "methods.md").read_text()
# A name, perhaps with [low, high] and *default*.
PARAMETER = re.compile(r"`(\w+)`(?: \[([−\d.e-]+), ([−\d.e-]+)\])?(?: \*([−\d.e-]+)\*)?")


def number(text):
    return float(text.replace("−", "-"))


def rows_of(section):
    """Return {name: its other cells} of the first table under a heading of docs/methods.md."""
    text = METHODS.split(f"\n## {section}\n", 1)[1]
    rows = {}
    for line in text.splitlines():
        found = re.match(r"\| `(\w+)` \|(.*)\|$", line)
        if found:
            rows[found[1]] = [cell.strip() for cell in found[2].split(" | ")]
        elif rows:
            break
    return rows


ROWS = rows_of("Merge methods")


@pytest.mark.parametrize(
    ("registry", "name"),
    [
        (registry, name)
        for registry in (merge_operators, delta_transforms, search_algorithms)
        for name in registry.names()
    ],
    ids=lambda value: value if isinstance(value, str) else value.kind,
)
def test_every_docstring_names_its_source(registry, name):
    text = inspect.getdoc(registry.get(name))
    assert re.search(r"^Source: \S", text, flags=re.MULTILINE), text


@pytest.mark.parametrize("name", merge_operators.names())
def test_search_ranges_and_defaults_in_the_rows_are_those_of_the_code(name):
    genes = {item.name: item for item in gene_fields(merge_operators.get(name))}
    assert genes, "nothing to search"
    cell = ROWS[name][1]
    like = re.search(r"\bas `(\w+)`", cell)
    named = set() if like is None else {g.name for g in gene_fields(merge_operators.get(like[1]))}
    for word, low, high, default in PARAMETER.findall(cell):
        if word not in genes:
            continue
        named.add(word)
        item = genes[word]
        if low:
            assert (number(low), number(high)) == (item.gene.low, item.gene.high), word
        if default:
            assert number(default) == pytest.approx(item.default, abs=0.005), word
    assert set(genes) <= named, cell


@pytest.mark.parametrize(
    ("cls", "row"),
    [
        *((delta_transforms.get(name), row) for name, row in rows_of("Transforms").items()),
        *((search_algorithms.get(name), row) for name, row in rows_of("Algorithms").items()),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "row",
)
def test_defaults_in_the_rows_are_those_of_the_code(cls, row):
    given = {}
    for word, text in re.findall(r"`(\w+): ([^`]+)`", row[-2]):
        given.setdefault(word, yaml.safe_load(text))  # what follows are variants
    for item in fields(cls):
        if item.name not in given or item.default is None:
            continue
        if isinstance(item.default, float) and given[item.name] != "1/3":
            assert float(given[item.name]) == pytest.approx(item.default, rel=0.01), item.name
        elif isinstance(item.default, int | str):
            assert given[item.name] == item.default, item.name


@pytest.mark.parametrize("name", delta_transforms.names())
def test_rows_of_transforms_name_every_parameter_and_what_comes_out(name):
    cls, (makes, _, cell, _) = delta_transforms.get(name), rows_of("Transforms")[name]
    assert makes.startswith(cls.outputs)
    assert {item.name for item in fields(cls)} <= set(re.findall(r"`(\w+)", cell))
