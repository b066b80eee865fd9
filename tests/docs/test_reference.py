"""The config reference, which the site is built with, names everything."""

import importlib.util
import re

import pytest

from evomerge.algorithms.algorithm import search_algorithms
from evomerge.algorithms.races.race import races
from evomerge.config.schema import RunConfig, RuntimeConfig
from evomerge.evaluation.evaluator import evaluators
from evomerge.merging.operator import merge_operators
from evomerge.merging.transform import delta_transforms
from tests.docs.pages import ROOT


@pytest.fixture(scope="module")
def text():
    path = ROOT / "docs" / "_ext" / "config_reference.py"
    spec = importlib.util.spec_from_file_location("config_reference", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.reference()


@pytest.mark.parametrize(
    "registry",
    [merge_operators, delta_transforms, search_algorithms, races, evaluators],
    ids=lambda registry: registry.kind,
)
def test_every_name_has_a_section(registry, text):
    assert set(registry.names()) <= set(re.findall(r"^### `(\w+)`$", text, flags=re.MULTILINE))


def test_keys_have_types_ranges_defaults_and_descriptions(text):
    assert "| `t` | number" in text
    row = next(line for line in text.splitlines() if line.startswith("| `gpus_per_worker`"))
    assert row == (
        "| `gpus_per_worker` | number |  | GPUs (or a fraction of one) each Ray worker reserves; "
        "None: as many as the model needs, on nodes that have some; 0 where no node has. |"
    )
    assert "| -1 … 1.5 |" in text
    for section in (RunConfig, RuntimeConfig):
        for key in section.model_fields:
            assert f"\n| `{key}` |" in text


def test_tables_are_whole(text):
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        columns = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(columns) == 1, table
